"""Services that real clients ask, and how a client is run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from bench.run.services import free_port
from tests.edge_agent.processes import ROOT

CLIENTS = ROOT / ".clients"
WITHIN_S = 300
UP = "from picospec.main import app; app()"


@pytest.fixture(autouse=True, scope="session")
def _installed() -> None:
    if not (CLIENTS / ".ready").exists():
        pytest.skip("run `make test-clients`, which installs the clients")


@contextmanager
def _serving(url: str, *command: str, **environment: str) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env={**os.environ, **environment}
    )
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/ready").status_code == 200:
                break
        time.sleep(0.3)
    else:
        raise TimeoutError(f"{url} is not ready")
    yield
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="module")
def ends() -> Iterator[tuple[str, str]]:
    """An edge, and its verifier."""
    edge, verifier = free_port(), free_port()
    urls = f"http://127.0.0.1:{edge}", f"http://127.0.0.1:{verifier}"
    ports = {"EDGE_PORT": str(edge), "VERIFIER_PORT": str(verifier)}
    with _serving(urls[0], "-c", UP, "up", "--config", "configs/local.toml", **ports):
        yield urls


@pytest.fixture(scope="module")
def pair(ends: tuple[str, str]) -> str:
    return ends[0]


@pytest.fixture(scope="module")
def scripted() -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with _serving(url, "-m", "tests.clients.scripted_service", str(port)):
        yield url


def python(name: str) -> Path:
    return CLIENTS / name / "bin" / "python"


def run(*command: str | Path, cwd: Path = CLIENTS, status: int = 0) -> str:
    """Run a client; return what it printed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PWD": str(cwd)},  # opencode believes it
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with a file hello.py."""
    (tmp_path / "hello.py").write_text("def greet():\n    print('hello')\n")
    for command in (
        ("git", "init", "-q"),
        ("git", "config", "user.email", "a@example.org"),
        ("git", "config", "user.name", "a"),
        ("git", "add", "."),
        ("git", "commit", "-qm", "begin"),
    ):
        run(*command, cwd=tmp_path)
    return tmp_path
