"""A small verifier over the real machine, whose target generates position * 3 + 100.

granian serves it in a process of its own. The model's name chooses how it misbehaves, unless
the process has a name of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from picospec.speculation.judges.judge import Judgement
from picospec.speculation.protocol import wire
from picospec.speculation.protocol.messages import (
    PROTOCOL_VERSION,
    Down,
    Fault,
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
LIMITS = Limits(max_verify=4, max_ahead=16)


def target_at(position: int) -> int:
    return 100 + 3 * position % 800


@dataclass
class Session:
    machine: VerifyingSession
    model: str
    runs: bool = True
    posts: int = 0
    names: set[str] = field(default_factory=set)
    """What the requests of the session call it."""


sessions: dict[str, Session] = {}
"""All that were opened here."""

RUN = f"{os.getpid():08d}"
"""What the names of this process's sessions begin with."""

cuts: Counter[str] = Counter()
cancelled: list[str] = []
replaced: list[str] = []
draining: list[str] = []
"""It is not empty once no more sessions are opened."""

strays: list[str] = []
"""Requests of sessions that were not opened here."""


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
        counts["replaced"] = len(replaced)
        counts["posts"] = sum(session.posts for session in sessions.values())
        counts["names"] = sum(len(session.names) for session in sessions.values())
        counts["different"] = len(set().union(*(s.names for s in sessions.values())))
        await _reply(send, 200, counts)
    elif path == "/v1/model-facts":
        await _reply(send, 200, FACTS | {"protocol": 5} if NAME == "old" else FACTS)
    elif path in ("/v1/chat/completions", "/v1/completions", "/api/chat"):
        await _reply(send, 200, {"path": path, "asked": json.loads(body)})
    elif (method, path) == ("POST", "/v1/speculate"):
        await _open(body, name, receive, send)
    else:
        await _drafts(session, body, send)


FACTS = {
    "model": "plain", "vocabulary_size": VOCABULARY, "vocabulary": "fake",
    "context_tokens": 512, "stop_tokens": [7],
    "judges": ["coupled", "separate"], "features": [],
    "limits": {"max_verify": 4, "max_ahead": 16}, "protocol": PROTOCOL_VERSION,
}  # fmt: skip

DRAINING = {"error": {"message": "it is draining", "code": "draining"}}


async def _open(body: bytes, called: str, receive: Receive, send: Send) -> None:
    (request,) = wire.Decoder().feed(body)
    assert isinstance(request, Open)
    kind = NAME or request.model
    if draining or kind == "draining":
        await _reply(send, 503, DRAINING)
        return
    if request.replaces in sessions:
        replaced.append(request.replaces)
    machine = VerifyingSession(request, LIMITS, vocabulary_size=VOCABULARY, u=iter(()))
    session = Session(machine, kind, names={called})
    name = f"{RUN}-{len(sessions)}"
    sessions[name] = session
    stream = asyncio.create_task(_stream(session, name, called, send))
    gone = asyncio.create_task(_left(receive))
    await asyncio.wait([stream, gone], return_when=asyncio.FIRST_COMPLETED)
    if not stream.done():
        cancelled.append(name)
    session.runs = False
    stream.cancel()
    gone.cancel()


async def _left(receive: Receive) -> None:
    """Return once the client has left."""
    await receive()


async def _stream(session: Session, name: str, called: str, send: Send) -> None:
    """Send what the machine commits; a model that cuts ends three times before the end."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    if session.model == "busy":
        await asyncio.sleep(1.5)
    count = 0
    async for message in _messages(session, name):
        if session.model == "garbage" and count == 3:
            await send(_chunk(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"))
        frame = wire.encode(message)
        if session.model == "cut" and count == 5 and cuts[called] < 3:
            cuts[called] += 1
            await send(_chunk(frame[: len(frame) // 2]))
            break
        await send(_chunk(frame))
        count += 1
    session.runs = False
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _messages(session: Session, name: str) -> AsyncIterator[Down]:
    yield Opened(name, LIMITS)
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
            yield Fault("shutting_down", "going home", retryable=True)
            return
        for message in down:
            yield message


async def _drafts(session: Session | None, body: bytes, send: Send) -> None:
    if session is None or not session.runs:
        return await _reply(send, 404, {"error": {"message": "unknown session"}})
    session.posts += 1
    if session.model == "flaky" and session.posts % 2:
        return await _reply(send, 503)
    for message in wire.Decoder().feed(body):
        assert isinstance(message, Pushed)
        session.machine.receive(message)
    await _reply(send, 204)


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
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
