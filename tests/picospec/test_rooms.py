"""Another package with the name of a room is never imported in its place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from picospec import ROOMS
from tests.edge_agent.processes import ROOT


@pytest.fixture
def intruders(tmp_path: Path) -> Path:
    """A folder with packages of others that have the rooms' names."""
    for room in (*ROOMS, "bench"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("raise RuntimeError('not the one')")
    return tmp_path


@pytest.mark.parametrize("module", ["picospec", "edge_agent", "verifier"])
def test_commands_and_services_start_in_a_folder_that_holds_such_names(
    module: str, intruders: Path
) -> None:
    command = [sys.executable, "-P", "-m", module, "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    done = subprocess.run(
        command, cwd=intruders, env=environment, capture_output=True, text=True
    )

    assert (done.returncode, "Usage" in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize("module", ["picospec", "verifier.vllm_target.plugin"])
def test_one_that_python_finds_first_is_named(module: str, intruders: Path) -> None:
    (intruders / "verifier/__init__.py").unlink()
    (intruders / "verifier").rmdir()
    path = os.pathsep.join((str(intruders), str(ROOT)))

    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import {module}"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )

    assert f"finds {intruders}/edge_agent/__init__.py first" in done.stderr
