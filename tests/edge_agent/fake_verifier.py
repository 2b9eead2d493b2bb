"""A small verifier over the real machine, whose target generates position * 3 + 100.

granian serves it in a process of its own. The model's name chooses how it misbehaves, unless
the process has a name of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from picospec.speculation.judges.judge import Judgement
from picospec.speculation.protocol import wire
from picospec.speculation.protocol.messages import (
    PROTOCOL_VERSION,
    Commit,
    Down,
    Fault,
    Finish,
    Limits,
    Open,
    Opened,
    Pushed,
)
from picospec.speculation.verifying.session import VerifyingSession

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

NAME = ""
"""How this process misbehaves, whatever the model."""

VOCABULARY = 1000
PASS_S = 0.01


def target_at(position: int) -> int:
    return 100 + 3 * position % 800


@dataclass
class Session:
    machine: VerifyingSession
    model: str
    sent: list[Down] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    task: asyncio.Task[None] | None = None
    streams: int = 0
    posts: int = 0
    names: set[str] = field(default_factory=set)
    """What the requests of the session call it."""


sessions: dict[str, Session] = {}
cancelled: list[str] = []
draining: list[str] = []
strays: list[str] = []
"""Requests of sessions that are not here."""

"""It is not empty once no more sessions are opened."""


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    method, path = scope["method"], scope["path"]
    body = await _body(receive)
    name = dict(scope["headers"]).get(b"picospec-session", b"").decode()
    if session := sessions.get(path.removeprefix("/v1/speculate/").partition("/")[0]):
        session.names.add(name)
    elif path.startswith("/v1/speculate/"):
        strays.append(path)
    if path == "/drain":
        draining.append(path)
        await _reply(send, 204)
    elif path == "/ready":
        await _reply(send, 503, DRAINING) if draining else await _reply(send, 200)
    elif path == "/seen":
        counts = {"opened": len(sessions), "cancelled": len(cancelled), "strays": len(strays)}
        counts["posts"] = sum(session.posts for session in sessions.values())
        counts["names"] = sum(len(session.names) for session in sessions.values())
        counts["different"] = len(set().union(*(s.names for s in sessions.values())))
        await _reply(send, 200, counts)
    elif path == "/v1/model-facts":
        await _reply(send, 200, FACTS)
    elif (method, path) == ("POST", "/v1/speculate"):
        await _open(body, name, send)
    elif method == "POST":
        await _drafts(path.split("/")[3], body, send)
    elif method == "GET":
        start = int(scope["query_string"].decode().partition("=")[2])
        await _resume(path.split("/")[3], start, send)
    else:
        cancelled.append(path)
        if session is not None:
            session.task.cancel()  # type: ignore[union-attr]
        await _reply(send, 204)


FACTS = {
    "model": "plain", "vocabulary_size": VOCABULARY, "vocabulary": "fake",
    "context_tokens": 512, "stop_tokens": [7],
    "judges": ["coupled", "separate"], "features": [],
    "limits": {"max_verify": 4, "max_ahead": 16}, "protocol": PROTOCOL_VERSION,
}  # fmt: skip

DRAINING = {"error": {"message": "it is draining", "code": "draining"}}

ERRORS = {
    "full": (429, "overloaded"), "mismatch": (409, "vocabulary_mismatch"),
    "unknown": (404, "model_not_found"), "bad": (400, "invalid_value"),
    "locked": (401, "invalid_api_key"), "loading": (503, "loading"),
    "draining": (503, "draining"), "large": (413, "too_large"),
    "other": (409, "identity_mismatch"),
}  # fmt: skip


async def _open(body: bytes, called: str, send: Send) -> None:
    (request,) = wire.Decoder().feed(body)
    assert isinstance(request, Open)
    if (name := "draining" if draining else NAME or request.model) in ERRORS:
        status, code = ERRORS[name]
        error = {"message": f"it is {name}", "type": "x", "param": "p", "code": code}
        await _reply(send, status, {"error": error})
        return
    limits = Limits(max_verify=4, max_ahead=16, resume_window_s=3.0)
    machine = VerifyingSession(request, limits, vocabulary_size=VOCABULARY, u=iter(()))
    session = Session(machine, NAME or request.model, names={called})
    name = f"s{len(sessions)}-{os.getpid()}"
    sessions[name] = session
    session.sent.append(Opened(name, limits))
    session.task = asyncio.create_task(_run(session))
    await _stream(session, send, 0)


async def _run(session: Session) -> None:
    machine = session.machine
    while not machine.finished:
        judged = machine.begin(len(machine.plan(4)))
        await asyncio.sleep(PASS_S)
        truth = [target_at(judged.start + i) for i in range(len(judged.draft) + 1)]
        matches = [a == b for a, b in zip(judged.draft, truth, strict=False)]
        accepted = matches.index(False) if False in matches else len(matches)
        down = machine.resolve(Judgement(tuple(truth[: accepted + 1]), accepted), pass_s=PASS_S)
        if session.model == "poisoned" and judged.start > 5:
            os._exit(1)
        if session.model == "fault" and judged.start > 5:
            down = [Fault("shutting_down", "going home", retryable=True)]
        await _send_down(session, down)


async def _send_down(session: Session, down: list[Down]) -> None:
    async with session.changed:
        session.sent.extend(down)
        session.changed.notify_all()


async def _drafts(name: str, body: bytes, send: Send) -> None:
    session = sessions.get(name)
    if session is None:
        return await _reply(send, 404, {"error": {"message": "unknown session"}})
    session.posts += 1
    if session.model == "flaky" and session.posts % 2:
        return await _reply(send, 503)
    for message in wire.Decoder().feed(body):
        assert isinstance(message, Pushed)
        session.machine.receive(message)
    await _reply(send, 204)


async def _resume(name: str, start: int, send: Send) -> None:
    session = sessions.get(name)
    if session is None or session.model == "forgetful":
        return await _reply(send, 404, {"error": {"message": "unknown session"}})
    if session.model == "limited":
        return await _reply(send, 429, {"error": {"message": "too many requests"}})
    at = next(
        (
            i
            for i, message in enumerate(session.sent)
            if isinstance(message, Commit) and message.start + len(message.tokens) > start
        ),
        len(session.sent),
    )
    await _stream(session, send, 0 if session.model == "repeating" else at)


async def _stream(session: Session, send: Send, at: int) -> None:
    """Send the messages from `at` on; a model that cuts ends after some of them."""
    cuts = session.model in ("cut", "repeating", "forgetful", "limited")
    session.streams += 1
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    if session.model == "busy":
        await asyncio.sleep(1.5)
    count = 0
    async for message in _after(session, at):
        if session.model == "garbage" and count == 3:
            await send(_chunk(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"))
        frame = wire.encode(message)
        if cuts and count == 5 and session.streams < 4:
            await send(_chunk(frame[: len(frame) // 2]))
            break
        await send(_chunk(frame))
        count += 1
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _after(session: Session, at: int) -> AsyncIterator[Down]:
    while True:
        async with session.changed:
            while len(session.sent) <= at:
                await session.changed.wait()
        yield (message := session.sent[at])
        if isinstance(message, Finish | Fault):
            return
        at += 1


def _chunk(data: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": True}


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _reply(send: Send, status: int, value: object = None) -> None:
    body = b"" if value is None else json.dumps(value).encode()
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})
