"""Whoever holds connections, with a key or without: others are answered, and answers go on."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.routing import Route
from structlog.testing import capture_logs

from bench.run.services import free_port
from edge_agent.link import connection
from edge_agent.metrics import EdgeMetrics
from gateway.hosting import http1, idle_connections, limits
from gateway.hosting.limits import limit_accept_error_logs
from gateway.ports import Delta, Job
from tests.edge_agent.conftest import metrics as metrics
from tests.edge_agent.processes import TEXT, Answer, running, using, wait_for
from tests.fakes.faulty_link import FaultyLink
from tests.gateway.scripted import ANN, BEN, MODEL, ScriptedEngine, make_app, served, table
from tests.guards import GUARD_S
from tests.verifier.conftest import KEY, ROOT, fake_command, serving
from tests.verifier.fake_target import FACTS

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


def test_the_limit_of_descriptors_is_raised_as_far_as_it_may_be() -> None:
    hard = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    script = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (50, {hard}));"
        "from gateway.hosting.limits import max_accepted, max_connections, raise_limit;"
        "limit = raise_limit();"
        "print(limit, limit - max_connections(limit) - max_accepted(limit))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=GUARD_S, check=True
    )

    limit, left = map(int, done.stdout.split())
    assert limit == hard
    assert left > 0


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


CONNECTIONS = 24
KEPT = CONNECTIONS // 4
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
HELD = "slowly"


class Holding(ScriptedEngine):
    """Its answers to HELD do not end."""

    async def generate(self, job: Job) -> AsyncGenerator[Delta]:
        if HELD.encode() in bytes(job.prompt):
            await asyncio.Event().wait()
        async for delta in super().generate(job):
            yield delta


@asynccontextmanager
async def edge(folder: Path, *names: str) -> AsyncIterator[tuple[str, list[Route]]]:
    """Serve on at most CONNECTIONS to these tenants, with one answer each at once."""
    file = folder / "keys.toml"
    file.write_text("".join(table(name, more="sessions = 1") for name in names))
    app = make_app(Holding(), keys_file=file)
    routes = [r for r in app.routes if isinstance(r, Route) and not isinstance(r, APIRoute)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "MAX_CONNECTIONS", CONNECTIONS)
        async with served(app, http1.protocol(CONNECTIONS)) as url:
            yield url, routes


async def is_answered(url: str, key: dict[str, str]) -> bool:
    """Return True if a new client of this key gets an answer, and /health is answered."""
    async with httpx.AsyncClient(base_url=url, timeout=GUARD_S) as client:
        chat = await client.post("/v1/chat/completions", json=CHAT, headers=key)
        return chat.status_code == (await client.get("/health")).status_code == 200


class Held:
    """Requests that are open, each on a connection of its own."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url)
        self._open = list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]()

    async def add(self, method: str, path: str, key: dict[str, str]) -> None:
        """Send a request, whose body does not come. A stranger's client may be cut."""
        host, port = self._address.hostname, self._address.port
        reader, writer = await asyncio.open_connection(host, port)
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: v\r\nauthorization: {key['authorization']}\r\n"
        )
        body = "content-type: application/json\r\ncontent-length: 99\r\n\r\n{"
        writer.write((head + (body if method == "POST" else "\r\n")).encode())
        self._open.append((reader, writer))

    async def statuses(self) -> list[bytes]:
        """Return the status of each that was answered and is open."""
        async with asyncio.timeout(GUARD_S):
            lines = [await reader.readline() for reader, _ in self._open]
        return [line[9:12] for line in lines]

    def close(self) -> None:
        for _, writer in self._open:
            writer.transport.abort()
        self._open.clear()


async def begun(url: str, path: str, model: str = MODEL) -> str:
    """Begin an answer of ann's that is recorded and does not end; return its id."""
    chat = [{"role": "user", "content": HELD}]
    asked = {"messages": chat} if "chat" in path else {"input": HELD}
    body = {"model": model, "background": True, "stream": True, **asked}
    if "chat" in path:
        body["stream_options"] = {"include_speculation": True}
    async with (
        httpx.AsyncClient(base_url=url, timeout=GUARD_S) as client,
        client.stream("POST", path, json=body, headers=ANN) as answer,
    ):
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                return str(event.get("response", event)["id"])
    raise AssertionError("it was not begun")


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
async def test_replays_leave_another_key_its_connections(tmp_path: Path, path: str) -> None:
    async with edge(tmp_path, "ann", "ben") as (url, _):
        name = await begun(url, path)
        with closing(Held(url)) as held:
            for _ in range(CONNECTIONS):
                await held.add("GET", f"{path}/{name}?stream=true", ANN)

            assert await is_answered(url, BEN)
            statuses = await held.statuses()
            assert statuses.count(b"200") == CONNECTIONS - KEPT


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux's")
async def test_a_process_answers_others_whatever_a_key_holds(tmp_path: Path) -> None:
    keys, port = tmp_path / "keys.toml", free_port()
    keys.write_text(table("ann") + table("ben"))
    connections = 60
    descriptors = 2 * connections  # half of them are for connections
    limited = ["prlimit", f"--nofile={descriptors}:{descriptors}"]
    url = f"http://127.0.0.1:{port}"
    with serving(limited + fake_command(port, keys_file=str(keys)), port):
        paths = ["/v1/speculate/uploads"]
        for path in ("/v1/responses", "/v1/chat/completions"):
            paths.append(f"{path}/{await begun(url, path, FACTS.model)}?stream=true")
        with closing(Held(url)) as held:
            for number in range(connections):
                path = paths[number % len(paths)]
                await held.add("POST" if "uploads" in path else "GET", path, ANN)

            assert [await is_answered(url, BEN) for _ in range(5)] == [True] * 5


async def test_no_route_lets_a_key_hold_what_others_need(tmp_path: Path) -> None:
    async with edge(tmp_path, "ann", "ben") as (url, routes):
        for method, path in ((method, r.path) for r in routes for method in r.methods or ()):
            with closing(Held(url)) as held:
                for _ in range(CONNECTIONS):
                    await held.add(method, path, ANN)
                assert await is_answered(url, BEN), (method, path)

    assert len(routes) > 40


async def test_a_host_with_one_key_has_no_such_share(tmp_path: Path) -> None:
    async with edge(tmp_path, "ann") as (url, _):
        name = await begun(url, "/v1/responses")
        with closing(Held(url)) as held:
            for _ in range(CONNECTIONS - 1):
                await held.add("GET", f"/v1/responses/{name}?stream=true", ANN)

            assert await held.statuses() == [b"200"] * (CONNECTIONS - 1)


RENEW_WITHOUT_DESCRIPTORS = """
import asyncio, os, resource
from contextlib import suppress
from edge_agent.link.connection import Connection
from edge_agent.link.errors import LinkDown

async def main():
    for url in ("http://127.0.0.1:9", "https://127.0.0.1:9"):
        link, held = Connection(url), []
        with suppress(LinkDown):
            await link.ask("GET", "/ready", within_s=5.0)
        with suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        for ask in (
            lambda: link.ask("GET", "/ready", within_s=5.0),
            lambda: link.post("x", b"", {}),
        ):
            link.renew(link.client)
            try:
                await ask()
            except LinkDown as error:
                assert "Too many open files" in str(error), error
            else:
                raise AssertionError(url)
        for descriptor in held:
            os.close(descriptor)

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
asyncio.run(main())
os._exit(0)  # threads of the HTTP client that still run do not outlive an interpreter that ends
"""


def test_without_a_descriptor_a_connection_is_renewed_and_its_requests_fail() -> None:
    command = [sys.executable, "-c", RENEW_WITHOUT_DESCRIPTORS]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}

    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=GUARD_S)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("error", [RuntimeError("no client"), OSError(24, "Too many open")])
async def test_an_answer_is_resumed_once_a_transport_can_be_made_again(
    metrics: EdgeMetrics, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    make, refused = connection.HTTPTransport, list[Exception]()

    def made(**options: object) -> object:
        if refused:
            raise refused.pop()
        return make(**options)  # type: ignore[arg-type]

    monkeypatch.setattr(connection, "HTTPTransport", made)
    with running("") as (only,):
        async with FaultyLink(only.port) as link, using([link.url], metrics) as verifiers:

            async def fall_silent() -> None:
                refused.extend([error] * 3)
                link.half_open()

            assert await Answer(verifiers, metrics).run(fall_silent) == TEXT

    assert not refused
    assert metrics.reopens._value.get() == 0
