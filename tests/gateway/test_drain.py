"""A service that drains refuses new answers, and lets those that run finish for a while."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from structlog.testing import capture_logs

from gateway import background_work, request_body
from gateway.drain import Drain
from gateway.hosting import http1
from tests.gateway.scripted import (
    MODEL,
    Body,
    ScriptedEngine,
    ask,
    client_of,
    endpoint_of,
    events_of,
    make_app,
    served,
)
from tests.guards import GUARD_S

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
STREAM = CHAT | {"stream": True}


@asynccontextmanager
async def running(
    drain: Drain, finish: asyncio.Event
) -> AsyncIterator[tuple[ScriptedEngine, list[asyncio.Task[httpx.Response]]]]:
    """Give an engine and two answers of it, one streamed, that go on when `finish` is set."""
    begun = asyncio.Semaphore(0)

    async def pause() -> None:
        begun.release()
        await finish.wait()

    engine = ScriptedEngine(pause=pause)
    async with client_of(make_app(engine, drain=drain)) as client:
        asked = [client.post("/v1/chat/completions", json=body) for body in (CHAT, STREAM)]
        answers = [asyncio.create_task(each) for each in asked]
        for _ in answers:
            await begun.acquire()
        yield engine, answers


@pytest.mark.parametrize("body", [CHAT, STREAM, {"prompt": "Hi"}])
async def test_a_new_answer_is_refused_and_the_client_told_when_to_ask_again(
    body: Body,
) -> None:
    drain, engine = Drain(), ScriptedEngine()
    async with client_of(make_app(engine, drain=drain)) as client:
        drain.begin(60.0)
        assert drain.over.is_set()  # there is no work to wait for
        answer = await client.post(endpoint_of(body), json=body)
        ready, health = await client.get("/ready"), await client.get("/health")

    assert not engine.jobs
    for refused in (answer, ready):
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "draining"
    assert health.status_code == 200


async def test_an_answer_that_runs_finishes_and_then_draining_is_over() -> None:
    drain, finish = Drain(), asyncio.Event()
    async with running(drain, finish) as (_, answers):
        drain.begin(60.0)
        await asyncio.sleep(0)
        assert not drain.over.is_set()

        finish.set()
        whole, streamed = await asyncio.gather(*answers)

    assert drain.over.is_set()
    assert whole.json()["choices"][0]["message"]["content"] == "Hi there"
    assert streamed.text.endswith("data: [DONE]\n\n")


async def test_an_answer_that_is_cut_off_says_so_and_closes_its_generator() -> None:
    drain = Drain()
    async with running(drain, asyncio.Event()) as (engine, answers), asyncio.timeout(GUARD_S):
        drain.begin(0.01)
        await drain.over.wait()
        await drain.cut()
        whole, streamed = [answer.result() for answer in answers]

    for _ in answers:
        await engine.closed.acquire()
    last = events_of(streamed.text)[-1]
    assert (whole.status_code, streamed.status_code) == (503, 200)
    for error in (whole.json()["error"], last["error"]):
        assert error["code"] == "shutting_down"
        assert "before the answer was complete" in error["message"]
    assert "[DONE]" not in streamed.text


async def test_a_timeout_of_the_engines_own_is_no_end_of_draining() -> None:
    engine = ScriptedEngine((), then=TimeoutError("slow"))
    assert (await ask(CHAT, engine)).status_code == 500


# What a client may take its time for, and what happens when it takes too long.

PATH = "/v1/chat/completions"
DEADLINES_STREAM = json.dumps(
    {"stream": True, "messages": [{"role": "user", "content": "on"}]}
).encode()
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


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "PATIENCE_S", SOON_S)
    monkeypatch.setattr(request_body, "LINGER_S", SOON_S)


@pytest.mark.usefixtures("impatient")
async def test_a_body_that_does_not_come_is_a_408() -> None:
    async with connection(ScriptedEngine()) as (reader, writer):
        writer.write(head("content-length: 100") + b"{")

        answer = await cut(reader)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer
    assert b"connection: close" in answer


@pytest.mark.usefixtures("impatient")
async def test_a_body_that_comes_byte_by_byte_is_a_408() -> None:
    async with connection(ScriptedEngine()) as (reader, writer):
        writer.write(head("content-length: 100000"))
        answer = asyncio.create_task(cut(reader))
        while not answer.done():
            writer.write(b" ")
            await asyncio.sleep(0.02)

    assert (await answer).startswith(b"HTTP/1.1 408 ")


async def test_a_body_that_comes_slowly_but_comes_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(request_body, "PATIENCE_S", SOON_S)
    monkeypatch.setattr(request_body, "MIN_BYTES_PER_S", 10)  # 700 bytes: 70 s
    body = DEADLINES_STREAM + b" " * 1000
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


async def test_a_client_that_reads_nothing_does_not_hold_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.http.UNREAD_S", SOON_S)
    engine = ScriptedEngine(script=ENDLESS, context_tokens=1 << 30)
    async with connection(engine) as (_, writer):
        writer.write(head(f"content-length: {len(DEADLINES_STREAM)}") + DEADLINES_STREAM)

        await engine.closed.acquire()


async def test_a_client_that_reads_nothing_does_not_hold_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http1, "UNREAD_S", SOON_S)
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT", raising=False)  # Linux would cut it, too
    engine = ScriptedEngine(script=ENDLESS, context_tokens=1 << 30)
    async with connection(engine) as (reader, writer):
        writer.write(head(f"content-length: {len(DEADLINES_STREAM)}") + DEADLINES_STREAM)
        await engine.closed.acquire()

        assert not (await cut(reader)).endswith(b"0\r\n\r\n")


async def test_a_client_that_reads_slowly_but_reads_keeps_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http1, "UNREAD_S", 10 * SOON_S)
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT", raising=False)
    script = [b"on and on " * 100] * 600
    engine = ScriptedEngine(script=script, context_tokens=1 << 30)
    body = DEADLINES_STREAM.replace(b'"stream": true', b'"stream": false')
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


async def test_background_work_that_fails_is_logged_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background_work, "AGAIN_S", 0.0)
    failures, done = iter((RuntimeError("a"), OSError("b"))), list[str]()

    async def work() -> None:
        for failure in failures:
            raise failure
        done.append("done")

    with capture_logs() as logs:
        await background_work.kept_going(work)

    assert done == ["done"]
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("background_failed", "error")
    ] * 2
