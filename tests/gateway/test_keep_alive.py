"""A stream that has nothing to show yet says so, and is else as it always is."""

from __future__ import annotations

import asyncio
import json
from functools import partial

import pytest
from starlette.types import Message

from picospec.gateway.doors import messages_answer, ollama
from picospec.gateway.doors.door import Answer
from picospec.gateway.errors import Unavailable
from tests.gateway.scripted import Body, ScriptedEngine, ask, make_app
from tests.gateway.test_corpus import normalised
from tests.gateway.test_sdk import CALL, HERMES, WEATHER

COMMENT = Answer.keep_alive
STREAM = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}

slow = partial(ScriptedEngine, begins_after_s=0.15)


@pytest.mark.parametrize("choices", [1, 3])
async def test_comments_come_until_the_first_event_and_change_none(choices: int) -> None:
    body = STREAM | {"n": choices}

    late = await ask(body, slow(pause=lambda: asyncio.sleep(0.03)), keep_alive_s=0.02)
    quick = await ask(body, keep_alive_s=0.02)

    comments, events = late.text.split("data: ", 1)
    assert comments == COMMENT.decode() * comments.count(COMMENT.decode()) != ""
    assert late.headers["content-type"] == quick.headers["content-type"]
    assert COMMENT.decode() not in events + quick.text
    assert events.count("data: ") == quick.text.count("data: ") - 1


async def test_an_error_after_a_comment_is_an_event() -> None:
    late, quick = [
        await ask(STREAM, engine((), Unavailable("gone")), keep_alive_s=0.02)
        for engine in (slow, ScriptedEngine)
    ]

    assert (late.status_code, quick.status_code) == (200, 503)
    assert late.text.startswith(COMMENT.decode())
    assert '"code":"verifier_unavailable"' in late.text
    assert "[DONE]" not in late.text


async def test_a_call_that_is_shown_when_it_is_whole_is_waited_for() -> None:
    body = {"messages": STREAM["messages"], "tools": [WEATHER]}
    engine = ScriptedEngine(
        script=[bytes([byte]) for byte in (CALL % "Oslo").encode()],
        pause=lambda: asyncio.sleep(0.01),
    )

    settings = {"tokenizer": HERMES, "keep_alive_s": 0.02}
    answer = await ask(body, engine, path="/api/chat", **settings)

    *waits, call, _ = answer.text.splitlines()
    assert len(waits) > 3
    assert "Oslo" in call


async def test_a_comment_that_a_slow_client_has_not_taken_is_not_overtaken() -> None:
    app = make_app(slow(), keep_alive_s=0.02)
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

    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    await app(scope, receive, send)

    assert COMMENT in bodies
    assert b"".join(bodies).count(b"[DONE]") == 1
    assert most == 1


@pytest.mark.parametrize(
    ("door", "body", "wait"),
    [
        ("/v1/messages", STREAM, messages_answer.MessageAnswer.keep_alive),
        ("/api/chat", STREAM, ollama.ChatAnswer.keep_alive),
        ("/api/generate", {"prompt": "Hi"}, ollama.TextAnswer.keep_alive),
    ],
)
async def test_other_doors_have_words_of_their_own_for_it(
    door: str, body: Body, wait: bytes
) -> None:
    late, quick = [
        normalised((await ask(body, engine(), path=door, keep_alive_s=0.02)).text)
        for engine in (slow, ScriptedEngine)
    ]

    waits = late.count(wait.decode()) - quick.count(wait.decode())
    assert waits > 0
    assert late == wait.decode() * waits + quick
