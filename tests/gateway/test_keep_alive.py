"""A stream that has nothing to show yet says so, and is else as it always is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

import httpx
import pytest
from starlette.types import Message

from picospec.gateway.doors.answer import Answer
from picospec.gateway.errors import Unavailable
from picospec.gateway.ports import Delta, Job
from tests.gateway.scripted import ScriptedEngine, ask, make_app, served

COMMENT = Answer.keep_alive
STREAM = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}


class Slow(ScriptedEngine):
    async def generate(self, job: Job) -> AsyncGenerator[Delta]:
        await asyncio.sleep(0.15)
        async for delta in super().generate(job):
            yield delta


async def answer(
    engine: ScriptedEngine, body: dict[str, object] = STREAM, s: float = 0.02
) -> httpx.Response:
    return await ask(body, engine, keep_alive_s=s)


@pytest.mark.parametrize("choices", [1, 3])
async def test_comments_come_until_the_first_event_and_change_none(choices: int) -> None:
    body = STREAM | {"n": choices}
    engine = Slow(pause=lambda: asyncio.sleep(0.03))

    slow, quick = await answer(engine, body), await answer(ScriptedEngine(), body)

    comments, events = slow.text.split("data: ", 1)
    assert comments == COMMENT.decode() * comments.count(COMMENT.decode()) != ""
    assert slow.headers["content-type"] == quick.headers["content-type"]
    assert COMMENT.decode() not in events + quick.text
    assert events.count("data: ") == quick.text.count("data: ") - 1


async def test_an_error_after_a_comment_is_an_event() -> None:
    failing = {"script": (), "then": Unavailable("gone")}

    slow, quick = await answer(Slow(**failing)), await answer(ScriptedEngine(**failing))

    assert (slow.status_code, quick.status_code) == (200, 503)
    assert slow.text.startswith(COMMENT.decode())
    assert '"code":"verifier_unavailable"' in slow.text
    assert "[DONE]" not in slow.text


async def test_a_client_that_goes_away_while_it_waits_closes_the_generator() -> None:
    engine = ScriptedEngine(pause=asyncio.Event().wait, script=[b""])
    app = make_app(engine, keep_alive_s=0.01)
    async with served(app) as url, httpx.AsyncClient(base_url=url) as client:
        async with client.stream("POST", "/v1/chat/completions", json=STREAM) as response:
            await anext(response.aiter_lines())

        async with asyncio.timeout(1):
            await engine.closed.acquire()


async def test_a_comment_that_a_slow_client_has_not_taken_is_not_overtaken() -> None:
    app = make_app(Slow(), keep_alive_s=0.02)
    sending, most = 0, 0
    bodies: list[bytes] = []
    requests = [{"type": "http.request", "body": json.dumps(STREAM).encode()}]

    async def receive() -> Message:
        return requests.pop() if requests else await asyncio.Future()

    async def send(message: Message) -> None:
        nonlocal sending, most
        sending += 1
        most = max(most, sending)
        await asyncio.sleep(0.2 if message.get("body") == COMMENT else 0)
        bodies.append(message.get("body", b""))
        sending -= 1

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions"}
    scope |= {"headers": headers}
    await app({**scope, "query_string": b"", "app": app}, receive, send)

    assert COMMENT in bodies
    assert b"".join(bodies).count(b"[DONE]") == 1
    assert most == 1
