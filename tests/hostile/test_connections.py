"""Strangers who only hold connections, at both ends."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest

from bench.run.services import free_port
from gateway.hosting import http1
from gateway.hosting.connections import silent
from tests.gateway.scripted import ScriptedEngine, make_app, served
from tests.verifier.conftest import fake_command, serving

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a socket's bytes")
DESCRIPTORS = 200
MOST = 8
"""Connections of the server under test."""


@contextmanager
def held(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Hold connections on which nothing is sent."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            for _ in range(count)
        ]


@LINUX
@pytest.mark.parametrize(
    ("sent", "is_cut"), [(b"", True), (b"PRI * HTTP", True), (b"x" * 24, False)]
)
def test_only_a_connection_without_a_first_request_is_cut(sent: bytes, is_cut: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            accepted, _ = listener.accept()
            client.sendall(sent)
            with accepted:
                if sent:
                    accepted.recv(len(sent), socket.MSG_WAITALL)
                count = silent.look(port, patience_s=-1.0)
                accepted.setblocking(False)
                try:
                    was_cut = accepted.recv(1) == b""
                except BlockingIOError:
                    was_cut = False

    assert count == 1
    assert was_cut == is_cut


@LINUX
def test_silent_connections_do_not_make_a_verifier_unreachable() -> None:
    port = free_port()
    limited = ["prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}", *fake_command(port)]
    with serving(limited, port), held(port, 2 * DESCRIPTORS):
        answer = httpx.get(f"http://127.0.0.1:{port}/health", timeout=30, trust_env=False)

    assert answer.status_code == 200


class Engine(ScriptedEngine):
    """Its answers wait after their first tokens until they may go on."""

    def __init__(self) -> None:
        super().__init__(pause=self._wait)
        self.begun, self.go_on = asyncio.Semaphore(0), asyncio.Event()

    async def _wait(self) -> None:
        self.begun.release()
        await self.go_on.wait()


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect, and send nothing."""
    return await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))


async def test_idle_connections_give_way_and_a_running_answer_goes_on() -> None:
    engine = Engine()
    async with (
        served(make_app(engine), http=http1.protocol(MOST)) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        running = asyncio.create_task(client.post("/v1/completions", json={"prompt": "a"}))
        await engine.begun.acquire()
        strangers = [await connect(url) for _ in range(3 * MOST)]
        others = [await client.get("/v1/models") for _ in range(3)]
        engine.go_on.set()
        answer = await running
        cut = [reader.at_eof() for reader, _ in strangers]
        for _, writer in strangers:
            writer.transport.abort()

    assert answer.json()["choices"][0]["text"] == "Hi there"
    assert [other.status_code for other in others] == [200] * 3
    assert cut.count(False) == MOST - 2
    assert cut == sorted(cut, reverse=True)  # those that were idle for longest


async def test_where_all_are_busy_the_new_connection_is_cut() -> None:
    engine = Engine()
    async with (
        served(make_app(engine), http=http1.protocol(MOST)) as url,
        httpx.AsyncClient(base_url=url) as client,
        asyncio.TaskGroup() as group,
    ):
        asks = [client.post("/v1/completions", json={"prompt": "a"}) for _ in range(MOST)]
        running = [group.create_task(ask) for ask in asks]
        for _ in running:
            await engine.begun.acquire()
        reader, writer = await connect(url)
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        engine.go_on.set()

    assert [task.result().status_code for task in running] == [200] * MOST
