"""The fake verifier as a process that can be killed."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trustme

from bench.run.services import free_port
from edge_agent.draft.drafter import NoDrafter
from edge_agent.link.connection import Connection
from edge_agent.link.verifier import Verifier
from edge_agent.link.verifiers import Verifiers
from edge_agent.metrics import EdgeMetrics
from gateway.background_work import running_alongside
from gateway.ports import Job
from speculation.messages import Sampling
from tests.edge_agent.fake_verifier import target_at
from tests.edge_agent.fakes import engine
from tests.guards import GUARD_S

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


def start(name: str = "") -> Process:
    """Serve the fake by granian, whose only worker is the process itself.

    name: how it misbehaves.
    """
    port = free_port()
    command = [sys.executable, "-c", _SERVE, str(port), name]
    running = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    wait_for(port)
    return Process(f"http://127.0.0.1:{port}", running)


def wait_for(port: int, process: subprocess.Popen[bytes] | None = None) -> None:
    """Return once something listens. process: what should, and must not end before."""
    deadline = time.monotonic() + GUARD_S
    while time.monotonic() < deadline:
        assert process is None or process.poll() is None
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError("the service does not listen")


# The shipped proxy configurations, with this machine's addresses in place of those in them.

NGINX: Final = """daemon off; worker_processes 1; pid nginx.pid; error_log stderr;
events {{ worker_connections 1024; }}
http {{ access_log off; {paths} include {file}; }}
"""
TEMPORARY: Final = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@contextmanager
def proxying(
    name: str, ports: tuple[int, int], folder: Path, change: Callable[[str], str] = str
) -> Iterator[tuple[str, bytes]]:
    """Run a proxy before two verifiers; yield its URL, and the authority of its certificate.

    change: what is to be different from the shipped configuration.
    """
    authority, port = trustme.CA(), free_port()
    given = authority.issue_cert("localhost")
    given.private_key_and_cert_chain_pem.write_to_path(str(folder / "proxy.pem"))
    given.private_key_pem.write_to_path(str(folder / "key.pem"))
    given.private_key_and_cert_chain_pem.write_to_path(str(folder / "fullchain.pem"))
    file = {"haproxy": "haproxy.cfg", "nginx": "nginx.conf"}[name]
    shipped = (ROOT / "deploy/proxies" / file).read_text()
    places = {
        "10.0.0.5:9000": f"127.0.0.1:{ports[0]}",
        "10.0.0.6:9000": f"127.0.0.1:{ports[1]}",
        "/etc/picospec": str(folder),
        "bind :443": f"bind 127.0.0.1:{port}",
        "listen 443": f"listen 127.0.0.1:{port}",
    }
    for there, here in places.items():
        shipped = shipped.replace(there, here)
    (folder / file).write_text(change(shipped))
    running = subprocess.Popen(_command(name, folder, folder / file), cwd=folder)
    try:
        wait_for(port)
        yield f"https://localhost:{port}", authority.cert_pem.bytes()
    finally:
        running.terminate()  # nginx ends its workers
        running.wait()


def _command(name: str, folder: Path, file: Path) -> list[str]:
    if name == "haproxy":
        return ["haproxy", "-db", "-f", str(file)]
    paths = "".join(f"{each}_temp_path {folder}/{each}; " for each in TEMPORARY)
    main = folder / "main.conf"
    main.write_text(NGINX.format(paths=paths, file=file))
    return ["nginx", "-p", str(folder), "-c", str(main), "-e", "stderr"]


def is_here(name: str) -> bool:
    return shutil.which(name) is not None


# Fake verifiers in processes of their own, and an edge's answers from them.

TOKENS = 200
"""Of an answer: at 10 ms each it takes two seconds."""

TEXT = [target_at(position) for position in range(TOKENS)]


@contextmanager
def running(*names: str) -> Iterator[list[Process]]:
    with ThreadPoolExecutor() as threads:
        processes = list(threads.map(start, names))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()


@asynccontextmanager
async def using(
    urls: list[str], metrics: EdgeMetrics, deadline_s: float = 10.0
) -> AsyncIterator[Verifiers]:
    connections = [Connection(url) for url in urls]
    each = [Verifier(made, metrics) for made in connections]
    verifiers = Verifiers(each, metrics, deadline_s)
    try:
        async with running_alongside(verifiers.watch()):
            await verifiers.probe()
            yield verifiers
    finally:
        await verifiers.close()


class Answer:
    """Return what an edge without drafts answers; `lose` is called once, after 20 tokens."""

    def __init__(self, verifiers: Verifiers, metrics: EdgeMetrics | None = None) -> None:
        self.tokens: list[int] = []
        self._edge = engine(verifiers, metrics, NoDrafter())
        self._job = Job("r", (1, 2, 3), TOKENS, Sampling(), 5)

    async def run(
        self, lose: Callable[[], Awaitable[object] | None] | None = None
    ) -> list[int]:
        async with asyncio.timeout(GUARD_S):
            async for delta in self._edge.generate(self._job):
                self.tokens += delta.tokens
                if lose and len(self.tokens) >= 20:
                    if (lost := lose()) is not None:
                        await lost
                    lose = None
        return self.tokens
