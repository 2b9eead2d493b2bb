"""Commands and services start where calls of Linux are missing, and beside rooms of others."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.system import LACKS
from picospec import ROOMS
from tests.edge_agent.processes import ROOT

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(params=["darwin", "win32"])
def system(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def start(system: str, tmp_path: Path) -> Start:
    def started(*command: str) -> subprocess.Popen[str]:
        script = str(Path(__file__).with_name("other_system.py"))
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return subprocess.Popen(
            [sys.executable, "-P", script, system, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            env={
                **kept,
                "PYTHONPATH": str(ROOT),
                "PICOSPEC_CACHE": str(tmp_path),
                "PICOSPEC_CONFIG_DIR": str(tmp_path),
            },
        )

    return started


@pytest.fixture
def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def test_an_edge_serves_until_it_is_told_to_stop(start: Start, free_port: str) -> None:
    verifier = ("--verifier-url", "http://127.0.0.1:1")
    edge = start("edge_agent", *verifier, "--draft", "none", "--port", free_port)

    assert edge.stdout is not None
    lines = [next(edge.stdout, "")]
    while lines[-1] and "serving" not in lines[-1]:
        lines.append(next(edge.stdout, ""))
    edge.terminate()
    rest, _ = edge.communicate()

    assert "serving" in lines[-1], "".join(lines)
    assert (edge.returncode, "Traceback" in rest) == (0, False), rest


def test_a_chat_says_that_no_edge_is_there(start: Start, free_port: str) -> None:
    output, _ = start("picospec", "chat", "--edge-port", free_port).communicate()

    assert "picospec up" in output


def test_the_doctor_names_what_the_system_lacks(start: Start, system: str) -> None:
    output, _ = start("picospec", "doctor", "--json", "--draft", "none").communicate()

    assert "; ".join(LACKS[system]) in output


# Another package with the name of a room is never imported in its place.


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
