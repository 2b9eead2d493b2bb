from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from edge_agent.metrics import EdgeMetrics

FAKE = Path(__file__).with_name("fake_verifier.py")


@dataclass
class Process:
    url: str
    running: subprocess.Popen[bytes]

    def kill(self) -> None:
        self.running.kill()
        self.running.wait()


@pytest.fixture
def metrics() -> EdgeMetrics:
    return EdgeMetrics(CollectorRegistry())


@pytest.fixture(scope="session")
def start_verifier() -> Callable[[], Process]:
    return _start


@pytest.fixture(scope="module")
def verifier() -> Iterator[Process]:
    process = _start()
    yield process
    process.kill()


def _start() -> Process:
    """Serve the fake in a process of its own: granian's only worker, so that a kill is one."""
    port = _free_port()
    code = (
        "import asyncio, importlib.util\n"
        "from granian.constants import HTTPModes, Interfaces\n"
        "from granian.server.embed import Server\n"
        f"spec = importlib.util.spec_from_file_location('fake', {str(FAKE)!r})\n"
        "fake = importlib.util.module_from_spec(spec)\n"
        "import sys; sys.modules['fake'] = fake\n"
        "spec.loader.exec_module(fake)\n"
        f"server = Server(fake.app, port={port}, interface=Interfaces.ASGINL,\n"
        "    http=HTTPModes.http2, websockets=False, log_enabled=False)\n"
        "asyncio.run(server.serve())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(FAKE.parents[2])}
    running = subprocess.Popen([sys.executable, "-c", code], env=environment)
    _wait_for(port)
    return Process(f"http://127.0.0.1:{port}", running)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError("the fake verifier did not start")
