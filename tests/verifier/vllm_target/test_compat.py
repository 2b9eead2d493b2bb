"""What sessions need of vLLM is named in one place, checked, and trusted only where tested."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from inspect import Parameter, Signature
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from structlog.testing import capture_logs

from picospec.verifier.target import TargetFailed
from picospec.verifier.vllm_target.serving import compat

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "vllm.md").read_text(encoding="utf-8")


def install_fake(patch: pytest.MonkeyPatch, *, version: str = "0.32.0") -> None:
    """Put a vLLM into this process that has just the names and arguments that are checked."""
    fakes = {"vllm": ModuleType("vllm")}
    for path in (*compat.NAMES, *compat.ARGUMENTS):
        name = path.partition(":")[0]
        fakes.setdefault(name, ModuleType(name))
    for name, module in fakes.items():
        patch.setitem(sys.modules, name, module)
    fakes["vllm"].__version__ = version  # type: ignore[attr-defined]
    for path, names in compat.NAMES.items():
        for each in names:
            setattr(holder(path), each.split("|")[-1], type(each, (), {}))
    for path, names in compat.ARGUMENTS.items():
        signature = Signature([Parameter(each, Parameter.KEYWORD_ONLY) for each in names])
        holder(path).__signature__ = signature


def holder(path: str) -> Any:
    """Return a fake module, or a class in it, which is made where it is missing."""
    module, _, dotted = path.partition(":")
    found: Any = sys.modules[module]
    for name in filter(None, dotted.split(".")):
        found.__dict__.get(name) or setattr(found, name, type(name, (), {}))
        found = getattr(found, name)
    return found


def imported() -> Iterator[tuple[str, str]]:
    """Yield the modules of vLLM that this project imports from, and what it imports."""
    for path in (ROOT / "verifier").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vllm."):
                yield from ((str(node.module), alias.name) for alias in node.names)


def test_all_that_is_imported_of_vllm_is_checked() -> None:
    modules = {path.partition(":")[0] for path in compat.NAMES}

    unchecked = [
        f"{module}:{name}"
        for module, name in imported()
        if f"{module}:{name}" not in compat.NAMES
        and f"{module}.{name}" not in modules
        and name not in compat.NAMES.get(f"{module}:", ())
    ]

    assert unchecked == []


@pytest.mark.parametrize("path", compat.NAMES)
def test_the_page_names_all_that_is_checked(path: str) -> None:
    module, _, name = path.partition(":")
    rows = "".join(row for row in PAGE.splitlines() if row.startswith(f"| `{module}` |"))

    names = (each for names in compat.NAMES[path] for each in names.split("|"))
    assert [each for each in (name, *names) if each and f"`{each}`" not in rows] == []
    assert rows


def test_the_page_has_no_row_of_what_is_not_checked() -> None:
    modules = {path.partition(":")[0] for path in compat.NAMES}

    assert set(re.findall(r"^\| `(vllm\..+?)` \|", PAGE, re.M)) == modules


@pytest.mark.parametrize(
    ("version", "tested"),
    [
        ("0.29.9", False),
        ("0.30.0", True),
        ("0.31.0.post2", True),
        ("0.32.0+cpu", True),
        ("0.32.7", True),
        ("0.32.1.dev30+g0123abcd", False),
        ("0.32.0rc1", False),
        ("0.33.0", False),
        ("1.31.0", False),
        ("dev", False),
        ("unknown", False),
    ],
)
def test_releases_of_the_range_are_tested_and_builds_between_them_are_not(
    version: str, tested: bool
) -> None:
    assert compat.is_tested(version) is tested


@pytest.mark.parametrize("wanted", [True, False])
def test_a_tested_version_is_self_tested_if_that_is_wanted(wanted: bool) -> None:
    with capture_logs() as logs:
        assert compat.must_self_test("0.31.0", wanted) is wanted

    assert logs == []


@pytest.mark.parametrize("wanted", [True, False])
def test_any_other_version_is_always_self_tested_and_that_is_logged(wanted: bool) -> None:
    with capture_logs() as logs:
        assert compat.must_self_test("0.33.0", wanted) is True

    assert [(log["event"], log["log_level"]) for log in logs] == [("vllm_untested", "warning")]
    assert "0.33.0 (outside of 0.30 to 0.32" in logs[0]["vllm"]


def test_a_vllm_with_everything_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    install_fake(monkeypatch, version="0.33.0")

    assert compat.check({"enforce_eager": True}) == "0.33.0"


@pytest.mark.parametrize("path", [path for path, names in compat.NAMES.items() if names])
def test_what_is_missing_is_named(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = compat.NAMES[path][-1]
    install_fake(monkeypatch)
    delattr(holder(path), name.split("|")[-1])

    with pytest.raises(TargetFailed) as error:
        compat.check({})

    shown = f"{path.rstrip(':').replace(':', '.')}.{name.replace('|', ' or ')}"
    assert str(error.value).startswith(f"vLLM 0.32.0 lacks {shown}")


def test_an_argument_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install_fake(monkeypatch)
    holder("vllm.v1.sample.rejection_sampler:rejection_sample").__signature__ = Signature()

    with pytest.raises(TargetFailed, match=r"rejection_sample\(max_spec_len\)"):
        compat.check({})
