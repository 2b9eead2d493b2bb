"""What vLLM would ignore in silence is looked for; a version is trusted only where tested."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import pytest
from structlog.testing import capture_logs

from picospec.verifier.vllm_target import conflicts as compat
from picospec.verifier.vllm_target import patches
from picospec.verifier.vllm_target.conflicts import Conflict
from picospec.verifier.vllm_target.patches import Patch


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_the_installed_vllm_has_all_that_is_listed(runner: Literal["v1", "v2"]) -> None:
    pytest.importorskip("vllm")

    compat.check_installation(runner)


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
    ("module", "lacking"), [("fake", "fake.gone"), ("other", "other"), ("other.in", "other.in")]
)
def test_what_is_missing_is_named(
    module: str, lacking: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(compat, "version", lambda: "0.34.0")
    monkeypatch.setattr(compat, "USED", {})
    patch = Patch("core", f"{module}:here", "x:y", "", "", needs=("gone",))
    monkeypatch.setattr(patches, "PATCHES", [patch])
    (tmp_path / "fake.py").write_text("here = 'ago', 'gone_by'\n")

    with pytest.raises(Conflict, match=rf"vLLM 0\.34\.0 .*lacks {re.escape(lacking)}$"):
        compat.check_installation("v1")
