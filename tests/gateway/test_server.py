"""Clients of the served API: what they may take their time for, what happens when they go away,
and what a health check and the openai SDK get."""

from __future__ import annotations

import asyncio
import http.server
import json
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import trustme
from structlog.testing import capture_logs

from gateway import request_body
from gateway.hosting import http1
from gateway.hosting.probe import trouble
from gateway.hosting.server import check_free
from tests.gateway.scripted import (
    CALL,
    HERMES,
    MODEL,
    WEATHER,
    Body,
    ScriptedEngine,
    client_of,
    make_app,
    sdk,
    served,
    writes,
)
from tests.guards import GUARD_S

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
STREAM = CHAT | {"stream": True}


async def forever() -> None:
    await asyncio.Event().wait()


async def closed(engine: ScriptedEngine, count: int) -> None:
    async with asyncio.timeout(GUARD_S):
        for _ in range(count):
            await engine.closed.acquire()


@pytest.mark.parametrize(
    ("script", "more", "keep_alive_s"),
    [
        ([b"Hi"], {}, 9.0),
        ([b"Hi"], {"n": 3}, 9.0),
        ([b""], {}, 0.01),
    ],
    ids=["one choice", "three choices", "nothing but comments"],
)
async def test_a_client_that_goes_away_mid_stream_closes_every_generator(
    script: list[bytes], more: Body, keep_alive_s: float
) -> None:
    engine = ScriptedEngine(script, pause=forever)
    app = make_app(engine, keep_alive_s=keep_alive_s)
    async with served(app) as url, httpx.AsyncClient(base_url=url) as client:
        async with client.stream("POST", "/v1/chat/completions", json=STREAM | more) as answer:
            await anext(answer.aiter_lines())

        await closed(engine, more.get("n", 1))
        metrics = (await client.get("/metrics")).text

    assert 'picospec:requests_total{route="answer",status="499"} 1.0' in metrics
    of = f'model_name="{MODEL}"'
    assert f"picospec:num_requests_running{{{of}}} 0.0" in metrics
    aborted = f'picospec:request_success_total{{finished_reason="abort",{of}}} 1.0'
    assert aborted in metrics


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_a_client_that_goes_away_before_the_first_token_closes_the_generator(
    body: Body,
) -> None:
    waiting = asyncio.Event()

    async def wait() -> None:
        waiting.set()
        await forever()

    engine = ScriptedEngine([b""], pause=wait)
    async with served(make_app(engine)) as url, httpx.AsyncClient(base_url=url) as client:
        with capture_logs() as logs:
            request = asyncio.create_task(client.post("/v1/chat/completions", json=body))
            await waiting.wait()
            request.cancel()
            await closed(engine, 1)
            async with asyncio.timeout(GUARD_S):
                while not logs:  # noqa: ASYNC110 - the server writes it once it knows
                    await asyncio.sleep(0.01)

    assert [entry["status"] for entry in logs] == [499]


# What a client may take its time for, and what happens when it takes too long.

PATH = "/v1/chat/completions"
SENT = json.dumps(STREAM).encode()
SOON_S = 0.2
TYPE = "content-type: application/json"
ENDLESS = [b"on and on " * 100] * 10_000


@asynccontextmanager
async def connection(
    engine: ScriptedEngine, **settings: object
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Serve as the edge does, and connect."""
    async with served(make_app(engine, **settings), http=http1.protocol(9)) as url:
        port = int(url.rsplit(":", 1)[1])
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        client.connect(("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=client)
        async with asyncio.timeout(GUARD_S):
            yield reader, writer
        writer.transport.abort()


def head(*lines: str) -> bytes:
    return "\r\n".join((f"POST {PATH} HTTP/1.1", "host: x", TYPE, *lines, "", "")).encode()


async def cut(reader: asyncio.StreamReader) -> bytes:
    """Return what comes until the service cuts the connection."""
    come = b""
    try:
        while data := await reader.read(1 << 16):
            come += data
    except ConnectionResetError:
        pass
    return come


@pytest.mark.parametrize("is_trickling", [False, True], ids=["silent", "byte by byte"])
async def test_a_body_that_does_not_come_is_a_408(
    monkeypatch: pytest.MonkeyPatch, is_trickling: bool
) -> None:
    monkeypatch.setattr(request_body, "PATIENCE_S", SOON_S)
    monkeypatch.setattr(request_body, "LINGER_S", SOON_S)
    async with connection(ScriptedEngine()) as (reader, writer):
        writer.write(head("content-length: 100000") + b"{")
        come = asyncio.create_task(cut(reader))
        while not come.done():
            writer.write(b" " * is_trickling)
            await asyncio.sleep(0.02)

    assert (await come).startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in await come
    assert b"connection: close" in await come


async def test_a_body_that_comes_slowly_but_comes_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(request_body, "PATIENCE_S", SOON_S)
    monkeypatch.setattr(request_body, "MIN_BYTES_PER_S", 10)  # 700 bytes: 70 s
    body = SENT + b" " * 1000
    async with connection(ScriptedEngine()) as (reader, writer):
        writer.write(head(f"content-length: {len(body)}", "connection: close") + body[:700])
        await asyncio.sleep(2 * SOON_S)
        writer.write(body[700:])

        answer = await cut(reader)

    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("key", ["right", "wrong"])
async def test_a_client_that_still_sends_a_refused_body_gets_the_answer(key: str) -> None:
    size = 1 << 20
    settings = {"body_limit_bytes": 1024, "api_keys": ("right",)}
    async with connection(ScriptedEngine(), **settings) as (reader, writer):
        writer.write(head(f"content-length: {size}", f"authorization: Bearer {key}"))
        for _ in range(64):
            writer.write(b" " * (size // 64))
            await writer.drain()

        answer = await reader.readuntil(b"\r\n")

    assert answer.split()[1] == {"right": b"413", "wrong": b"401"}[key]


async def test_of_a_refused_body_only_so_much_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "LINGER_BYTES", 1 << 16)
    read_bytes = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read_bytes
        while True:
            read_bytes += 1 << 14
            yield b" " * (1 << 14)

    async with client_of(make_app(ScriptedEngine(), body_limit_bytes=1024)) as client:
        answer = await client.post(PATH, content=endless())

    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"
    assert read_bytes == 1 << 16


@pytest.mark.parametrize(
    "deadline", ["gateway.http.UNREAD_S", "gateway.hosting.http1.UNREAD_S"]
)
async def test_a_client_that_reads_nothing_holds_neither_the_engine_nor_its_connection(
    monkeypatch: pytest.MonkeyPatch, deadline: str
) -> None:
    monkeypatch.setattr(deadline, SOON_S)
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT", raising=False)  # Linux would cut it, too
    engine = ScriptedEngine(script=ENDLESS, context_tokens=1 << 30)
    async with connection(engine) as (reader, writer):
        writer.write(head(f"content-length: {len(SENT)}") + SENT)
        await engine.closed.acquire()

        if "http1" in deadline:
            assert not (await cut(reader)).endswith(b"0\r\n\r\n")


async def test_a_client_that_reads_slowly_but_reads_keeps_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http1, "UNREAD_S", 10 * SOON_S)
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT", raising=False)
    script = [b"on and on " * 100] * 600
    engine = ScriptedEngine(script=script, context_tokens=1 << 30)
    body = SENT.replace(b'"stream": true', b'"stream": false')
    async with connection(engine) as (reader, writer):
        writer.write(head(f"content-length: {len(body)}", "connection: close") + body)
        size, come = 0, await reader.readuntil(b"\r\n\r\n")
        while data := await reader.read(1 << 13):  # in all longer than that
            size += len(data)
            await asyncio.sleep(SOON_S / 4)

    assert come.startswith(b"HTTP/1.1 200 ")
    assert size > 600_000


@pytest.mark.parametrize("begun", [b"", b"POST /v1/chat"])
async def test_a_connection_on_which_no_request_comes_is_cut(
    monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(http1, "REQUEST_S", SOON_S)
    async with connection(ScriptedEngine()) as (reader, writer):
        writer.write(begun)

        assert await cut(reader) == b""


async def test_a_connection_between_two_requests_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http1, "REQUEST_S", SOON_S)
    async with connection(ScriptedEngine()) as (reader, writer):
        for _ in range(2):
            writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await reader.readuntil(b"\r\n")).split()[1] == b"200"
            await asyncio.sleep(2 * SOON_S)
            assert await reader.read(1 << 16)


# A container's health check, against services with and without TLS.

ROOT = Path(__file__).parents[2]
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of a connection that is reset when it is closed."""


class Answers(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()
        self.wfile.write(b"so it is")

    def log_message(self, *_: object) -> None:
        pass


class Fails(Answers):
    status = 503


@contextmanager
def probe_served(
    context: ssl.SSLContext | None = None, answers: type[Answers] = Answers
) -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), answers)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if context:
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def context_of(authority: trustme.CA, *, asks: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("verifier.example").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED if asks else ssl.CERT_NONE
    return context


@pytest.mark.parametrize("environ", [{}, {"PICOSPEC_VERIFIER__TLS__CERTIFICATE": "f"}])
@pytest.mark.parametrize("kind", ["plain", "tls", "mutual"])
def test_a_service_that_answers_is_alive_whatever_it_speaks(
    kind: str, environ: dict[str, str]
) -> None:
    authority = trustme.CA()
    context = None if kind == "plain" else context_of(authority, asks=kind == "mutual")

    with probe_served(context) as port:
        assert trouble(port, environ) == ""


@pytest.mark.parametrize(
    "answer", [b"garbage\r\n\r\n", b"", None], ids=["garbage", "reset", "silence"]
)
def test_what_does_not_answer_a_hello_by_tls_is_dead(
    answer: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """answer: what every connection gets before it is closed; None for nothing, and no end."""
    monkeypatch.setattr("gateway.hosting.probe.TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answered, args=(server, answer), daemon=True).start()

        assert trouble(server.getsockname()[1], {}) != ""


def answered(server: socket.socket, answer: bytes | None) -> None:
    kept = []
    with suppress(OSError):  # the end of the test closes it
        while True:
            connection, _ = server.accept()
            if answer is None:
                kept.append(connection)
                continue
            if answer:
                connection.sendall(answer)
            else:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            connection.close()


def test_a_service_that_says_so_is_not_alive() -> None:
    for context in (None, context_of(trustme.CA(), asks=False)):
        with probe_served(context, Fails) as port:
            assert trouble(port, {}) == "503 so it is"


def test_the_probe_is_a_command() -> None:
    command = [sys.executable, "-m", "gateway.hosting.probe"]
    with probe_served() as port:
        assert subprocess.run([*command, str(port)], cwd=ROOT).returncode == 0

    with socket.socket() as taken:  # by nobody who listens, and by nobody else meanwhile
        taken.bind(("127.0.0.1", 0))
        command.append(str(taken.getsockname()[1]))
        dead = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert dead.returncode == 1
    assert "refused" in dead.stderr


def test_a_port_in_use_is_named_with_what_chooses_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        with pytest.raises(OSError, match=rf"\Aport {port} of .* PICOSPEC_EDGE__PORT\Z"):
            check_free("edge", "127.0.0.1", port)


# The real openai SDK puts calls together, streamed or not.


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_the_sdk_has_the_same_calls_streamed_or_not(is_streamed: bool) -> None:
    text = f"Let me see.\n{CALL % 'Oslo'}\n{CALL % 'Rom'}"
    asked = {**CHAT, "tools": [WEATHER]}
    async with sdk(writes(text), tokenizer=HERMES) as client:
        if is_streamed:
            async with client.chat.completions.stream(**asked) as stream:
                answer = await stream.get_final_completion()
        else:
            answer = await client.chat.completions.create(**asked)

    [choice] = answer.choices
    calls = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
    assert [call.function.name for call in calls] == ["weather", "weather"]
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Oslo", "Rom"]
    assert len({call.id for call in calls}) == 2
    assert {call.type for call in calls} == {"function"}
