"""The fake verifier as a process that can be killed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from picospec.bench.run.services import free_port

ROOT = Path(__file__).parents[2]

_SERVE = """
import asyncio, sys
from tests.edge_agent import fake_verifier
fake_verifier.NAME = sys.argv[2]
from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server
asyncio.run(Server(
    fake_verifier.app, port=int(sys.argv[1]), interface=Interfaces.ASGINL,
    http=HTTPModes.auto, websockets=False, log_enabled=False,
).serve())
"""


@dataclass
class Process:
    url: str
    running: subprocess.Popen[bytes]

    def kill(self) -> None:
        self.running.kill()
        self.running.wait()

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


def start(name: str = "", port: int | None = None) -> Process:
    """Serve the fake by granian, whose only worker is the process itself.

    name: how it misbehaves. port: a free one by default.
    """
    port = port or free_port()
    command = [sys.executable, "-c", _SERVE, str(port), name]
    running = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    wait_for(port)
    return Process(f"http://127.0.0.1:{port}", running)


def wait_for(
    port: int, process: subprocess.Popen[bytes] | None = None, within_s: float = 10
) -> None:
    """Return once something listens. process: what should, and must not end before."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        assert process is None or process.poll() is None
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError("the service does not listen")
