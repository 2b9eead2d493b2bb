"""What sessions use of vLLM is named in one place, checked, and trusted only where tested."""

from __future__ import annotations

import re
from pathlib import Path
from queue import Queue
from typing import Final, Literal

import pytest
from structlog.testing import capture_logs

from picospec.verifier.target import TargetFailed
from picospec.verifier.vllm_target.configuring import compat
from tests.verifier.vllm_target.used_of_vllm import Source

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "vllm.md").read_text(encoding="utf-8")
TABLES = (compat.USED, *compat.BY_RUNNER.values())
LISTED = [path.removesuffix(":") for table in TABLES for path in table]
PLAIN = {name for each in (dict, list, set, str, Queue) for name in dir(each)}
OF_TORCH: Final = {"_torchdynamo_orig_callable", "dtype", "new_full", "tolist", "type"}


def test_all_that_our_source_uses_of_vllms_objects_is_listed() -> None:
    ours: dict[str, set[str]] = {}
    files = (ROOT / "verifier" / "vllm_target").rglob("*.py")
    in_order = sorted(files, key=lambda path: (path.name == "scheduler.py", path))

    used = set().union(
        *(Source(path.read_text(encoding="utf-8"), ours).used() for path in in_order)
    )

    known = {name for table in TABLES for names in table.values() for name in names}
    left = used - known - PLAIN - OF_TORCH - set().union(*ours.values())
    assert {name for name in left if not name.startswith(("__", "picospec_"))} == set()
    assert {"accept_tokens", "kv_cache_manager", "prompt_token_ids", "req_ids"} <= used


def test_what_is_used_is_found_however_it_is_reached() -> None:
    text = """
from vllm.a import Base, Given, Made

class Ours(Base):
    def method(self, given: Given, others: list[Given], count: int) -> None:
        self.inherited.deep
        self._own = given.first or count.bit_length
        for each, _ in self._own:
            each.looped
        if hasattr(others[0].item(), "asked"):
            Made(field=1)
        super().above()
"""

    assert Source(text, {}).used() == {
        "inherited", "deep", "first", "looped", "item", "asked", "field", "above",
    }  # fmt: skip


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_the_installed_vllm_has_all_that_is_listed(runner: Literal["v1", "v2"]) -> None:
    pytest.importorskip("vllm")

    compat.check(runner)


def test_the_page_says_of_each_class_why_it_is_used_and_of_no_other() -> None:
    rows = re.findall(r"^\| `(vllm\..+?)` \| (.*?)\| .+ \|", PAGE, re.M)

    named = ((module, name.strip("` ")) for module, names in rows for name in names.split(","))
    assert sorted(f"{module}:{name}".removesuffix(":") for module, name in named) == sorted(
        LISTED
    )


@pytest.mark.parametrize(
    ("of", "tested"),
    [
        ("0.31.9", False),
        ("0.32.0", True),
        ("0.33.0.post2", True),
        ("0.32.0+cpu", True),
        ("0.33.7", True),
        ("0.32.1.dev30+g0123abcd", False),
        ("0.33.0rc1", False),
        ("0.34.0", False),
        ("1.32.0", False),
        ("dev", False),
        ("unknown", False),
    ],
)
def test_releases_of_the_range_are_tested_and_builds_between_them_are_not(
    of: str, tested: bool
) -> None:
    assert compat.is_tested(of) is tested


@pytest.mark.parametrize("wanted", [True, False])
def test_a_tested_version_is_self_tested_if_that_is_wanted(wanted: bool) -> None:
    with capture_logs() as logs:
        assert compat.must_self_test("0.33.0", wanted) is wanted

    assert logs == []


@pytest.mark.parametrize("wanted", [True, False])
def test_any_other_version_is_always_self_tested_and_that_is_logged(wanted: bool) -> None:
    with capture_logs() as logs:
        assert compat.must_self_test("0.34.0", wanted) is True

    assert [(log["event"], log["log_level"]) for log in logs] == [("vllm_untested", "warning")]
    assert "0.34.0 (outside of 0.32 to 0.33" in logs[0]["vllm"]


@pytest.mark.parametrize(
    ("module", "path", "lacking"),
    [
        ("fake", "fake:Scheduler", "fake.Scheduler.gone"),
        ("fake", "fake:Renamed", "fake.Renamed"),
        ("fake", "fake:", "fake.gone"),
        ("elsewhere", "fake:Scheduler", "fake.Scheduler"),
        ("elsewhere", "fake.inner:", "fake.inner"),
    ],
)
def test_what_is_missing_is_named(
    module: str, path: str, lacking: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(compat, "version", lambda: "0.34.0")
    monkeypatch.setattr(compat, "USED", {path: ("gone", "here")})
    monkeypatch.setattr(compat, "BY_RUNNER", {"v1": {}})
    (tmp_path / f"{module}.py").write_text(
        "class Scheduler:\n    def __init__(self):\n        self.here = 1\nhere = 1\n"
    )
    compat._defined.cache_clear()

    with pytest.raises(TargetFailed, match=rf"vLLM 0\.34\.0 .*lacks {re.escape(lacking)}$"):
        compat.check("v1")
