"""Strangers who only hold connections, at both ends."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from bench.run.services import free_port
from gateway.hosting import http1, idle_connections
from gateway.hosting.limits import MAX_DESCRIPTORS, limit_accept_error_logs
from tests.edge_agent.processes import wait_for
from tests.gateway.scripted import ScriptedEngine, make_app, served
from tests.guards import GUARD_S
from tests.verifier.conftest import KEY, ROOT, fake_command, serving

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a socket's bytes")
DESCRIPTORS = 200
MAX_OPEN = 8
"""Connections of the server under test."""


@contextmanager
def held(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Hold connections on which nothing is sent."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=GUARD_S))
            for _ in range(count)
        ]


@LINUX
@pytest.mark.parametrize(
    ("sent", "is_cut"), [(b"", True), (b"PRI * HTTP", True), (b"x" * 24, False)]
)
def test_only_a_connection_without_a_first_request_is_cut(sent: bytes, is_cut: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=GUARD_S) as client:
            accepted, _ = listener.accept()
            client.sendall(sent)
            with accepted:
                if sent:
                    accepted.recv(len(sent), socket.MSG_WAITALL)
                count = idle_connections.cut_if_silent(port, max_silence_s=-1.0)
                accepted.setblocking(False)
                try:
                    was_cut = accepted.recv(1) == b""
                except BlockingIOError:
                    was_cut = False

    assert count == 1
    assert was_cut == is_cut


@pytest.fixture(scope="module")
def verifier() -> Iterator[int]:
    """The port of a verifier that may have few descriptors."""
    port = free_port()
    limited = ["prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}", *fake_command(port)]
    with serving(limited, port):
        yield port


@LINUX
def test_silent_connections_do_not_make_a_verifier_unreachable(verifier: int) -> None:
    with held(verifier, 2 * DESCRIPTORS):
        answer = httpx.get(
            f"http://127.0.0.1:{verifier}/health", timeout=GUARD_S, trust_env=False
        )

    assert answer.status_code == 200


HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""All that a client of HTTP/2 must send: the preface, and settings without a change."""


@LINUX
def test_connections_that_ask_nothing_give_way_at_a_verifier_and_a_running_stream_goes_on(
    verifier: int,
) -> None:
    url = f"http://127.0.0.1:{verifier}"
    messages, key = [{"role": "user", "content": "slowly"}], {"authorization": f"Bearer {KEY}"}
    asked = {"messages": messages, "max_tokens": 120, "stream": True}
    with (
        httpx.Client(base_url=url, headers=key, timeout=GUARD_S, trust_env=False) as client,
        client.stream("POST", "/v1/chat/completions", json=asked) as running,
        held(verifier, DESCRIPTORS) as strangers,
    ):
        for stranger in strangers:
            stranger.sendall(HTTP2)
        answer = httpx.get(f"{url}/health", timeout=GUARD_S, trust_env=False)
        lines = [line for line in running.iter_lines() if line]

    assert answer.status_code == 200
    assert lines[-1] == "data: [DONE]"


@LINUX
@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("host: a\r\n", b"200"),
        ("", b"400"),
        ("host: a\r\nhost: b\r\n", b"400"),
        ("host: a\r\nauthorization: Bearer a\r\nauthorization: Bearer b\r\n", b"400"),
    ],
)
def test_a_verifier_takes_one_host_and_one_key(verifier: int, head: str, status: bytes) -> None:
    with socket.create_connection(("127.0.0.1", verifier), timeout=GUARD_S) as client:
        client.sendall(f"GET /health HTTP/1.1\r\n{head}\r\n".encode())

        assert client.recv(100).split()[1] == status


class Engine(ScriptedEngine):
    """Its answers wait after their first tokens until they may go on."""

    def __init__(self) -> None:
        super().__init__(pause=self._wait)
        self.begun, self.go_on = asyncio.Semaphore(0), asyncio.Event()

    async def _wait(self) -> None:
        self.begun.release()
        await self.go_on.wait()


async def connect(
    url: str, sent: bytes = b""
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
    writer.write(sent)
    return reader, writer


HALF_A_BODY = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{"


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST /v1/", HALF_A_BODY],
    ids=["nothing", "half a head", "half a body"],
)
async def test_idle_connections_give_way_and_a_running_answer_goes_on(sent: bytes) -> None:
    engine = Engine()
    async with (
        served(make_app(engine), http=http1.protocol(MAX_OPEN)) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        running = asyncio.create_task(client.post("/v1/completions", json={"prompt": "a"}))
        await engine.begun.acquire()
        strangers = [await connect(url, sent) for _ in range(3 * MAX_OPEN)]
        others = [await client.get("/v1/models") for _ in range(3)]
        engine.go_on.set()
        answer = await running
        cut = [reader.at_eof() for reader, _ in strangers]
        for _, writer in strangers:
            writer.transport.abort()

    assert answer.json()["choices"][0]["text"] == "Hi there"
    assert [other.status_code for other in others] == [200] * 3
    assert cut.count(False) == MAX_OPEN - 2
    assert cut == sorted(cut, reverse=True)  # those that were idle for longest


async def test_where_all_are_busy_the_new_connection_is_cut() -> None:
    engine = Engine()
    async with (
        served(make_app(engine), http=http1.protocol(MAX_OPEN)) as url,
        httpx.AsyncClient(base_url=url) as client,
        asyncio.TaskGroup() as group,
    ):
        asks = [client.post("/v1/completions", json={"prompt": "a"}) for _ in range(MAX_OPEN)]
        running = [group.create_task(ask) for ask in asks]
        for _ in running:
            await engine.begun.acquire()
        reader, writer = await connect(url)
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        engine.go_on.set()

    assert [task.result().status_code for task in running] == [200] * MAX_OPEN


async def test_a_loop_without_descriptors_says_so_in_one_line_a_minute() -> None:
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    limit_accept_error_logs(loop)
    failed = {"message": "accept", "exception": OSError(errno.EMFILE, "none left")}
    try:
        with capture_logs() as lines:
            for _ in range(3000):
                loop.call_exception_handler(failed)
    finally:
        loop.set_exception_handler(before)

    assert [line["event"] for line in lines] == ["no connection can be accepted"]


@pytest.mark.parametrize(
    ("hard", "connections"), [(64, 32), (1024, 512), (4096, 3072), (1 << 20, 8192)]
)
def test_the_limit_is_raised_and_connections_are_fewer(hard: int, connections: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = min(hard, before[1])
    script = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (50, {hard}));"
        "from gateway.hosting import limits as descriptors;"
        "limit = descriptors.raise_limit();"
        "print(limit, descriptors.max_connections(limit), descriptors.max_accepted(limit))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=GUARD_S, check=True
    )

    limit, most, at_once = map(int, done.stdout.split())
    assert (limit, most) == (min(hard, MAX_DESCRIPTORS), connections)
    assert most + at_once < limit


NO_REQUESTS = (
    b"GARBAGE\r\n\r\n",
    b"\x16\x03\x01\x02\x00" + b"x" * 600,  # TLS
    b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
)


def test_what_is_no_request_has_no_line_in_an_edges_log(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    arguments = f"--port {port} --draft none --verifier-url http://127.0.0.1:9"
    command = [sys.executable, "-m", "edge_agent", *arguments.split()]
    with log.open("wb") as out:
        edge = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)
    try:
        wait_for(port, edge)
        while b"unreachable" not in (before := log.read_bytes()):
            time.sleep(0.05)  # by when it may have answered
        for sent in NO_REQUESTS:
            with socket.create_connection(("127.0.0.1", port), timeout=GUARD_S) as client:
                client.sendall(sent)
                assert client.recv(100).startswith(b"HTTP/1.1 ")
    finally:
        edge.kill()
        edge.wait()

    assert log.read_bytes() == before
