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
from contextlib import suppress
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive as Receive
from starlette.types import Scope
from starlette.types import Send as Send

from speculation import upload_records, wire
from speculation.judge import Judgement
from speculation.messages import Down, Fault, Multiplexed, Open, Opened, Pushed
from speculation.model_facts import PROTOCOL_VERSION, Limits
from speculation.verify_session import VerifyingSession

NAME = ""
"""How this process misbehaves, whatever the model."""

UPLOADS = "/v1/speculate/uploads"
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
    carry: Callable[[bytes], Awaitable[None]] | None = None
    """Sends what an upload stream carries."""

    names: set[str] = field(default_factory=set)
    """What the requests of the session call it."""


sessions: dict[str, Session] = {}
"""All that were opened here."""

RUN = f"{os.getpid():08d}"
"""What the names of this process's sessions begin with."""

cuts: Counter[str] = Counter()
draining: list[str] = []
"""It is not empty once no more sessions are opened."""

uploaded: list[str] = []
"""The session of each record of an upload stream."""

multiplexed: list[str] = []
"""The sessions that an upload stream carried."""

strays: list[str] = []
"""Requests of sessions that were not opened here."""

told: list[str] = []
"""Requests for the facts."""


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http" and scope["path"] == UPLOADS and NAME not in OTHERS:
        await _upload(Request(scope, receive), send)
    elif scope["type"] == "http":
        response = await _answer(Request(scope, receive))
        await response(scope, receive, send)


async def _upload(request: Request, send: Send) -> None:
    """Take the messages of an upload stream, and acknowledge them."""
    has_records = request.headers.get("picospec-answer") == "records"
    one_by_one = asyncio.Lock()

    async def carry(body: bytes) -> None:
        async with one_by_one:
            await send({"type": "http.response.body", "body": body, "more_body": True})

    await send({"type": "http.response.start", "status": 200, "headers": []})
    await carry(RUN.encode())
    decoder = upload_records.RecordDecoder()
    with suppress(ClientDisconnect):
        async for data in request.stream():
            for record in decoder.feed(data):
                if record.session and not record.frames:
                    sessions[record.session].carry = carry
                elif record.frames:
                    uploaded.append(record.session)
                    if (session := sessions.get(record.session)) and session.runs:
                        _take(session, record.frames)
                else:
                    await carry(
                        upload_records.ASK if has_records else upload_records.ACKNOWLEDGED
                    )


async def _answer(request: Request) -> Response:
    path, body = request.scope["path"], await request.body()
    name = request.headers.get("picospec-session", "")
    if session := sessions.get(path.removeprefix("/v1/speculate/").partition("/")[0]):
        session.names.add(name)
    elif path.startswith("/v1/speculate/"):
        strays.append(path)
    match path:
        case "/drain":
            draining.append(path)
            return Response(status_code=204)
        case "/ready":
            return JSONResponse(DRAINING, 503) if draining else Response()
        case "/seen":
            return JSONResponse(_seen())
        case "/v1/model-facts":
            told.append(path)
            return JSONResponse(FACTS | OTHERS.get(NAME, {}))
        case "/v1/chat/completions" | "/v1/completions" | "/api/chat":
            asked = json.loads(body)
            return JSONResponse({"path": path, "asked": asked, **asked.get("counts", {})})
        case "/v1/speculate":
            return _open(body, name)
    return _drafts(session, body)


def _seen() -> dict[str, int]:
    names = [session.names for session in sessions.values()]
    return {
        "opened": len(sessions),
        "strays": len(strays),
        "told": len(told),
        "uploaded": len(uploaded),
        "carried": len(multiplexed),
        "posts": sum(session.posts for session in sessions.values()),
        "different": len(set().union(*names)),
    }


FACTS = {
    "model": "plain", "vocabulary_size": VOCABULARY, "vocabulary": "fake",
    "context_tokens": 512, "stop_tokens": [7],
    "judges": ["coupled", "separate"], "features": [],
    "limits": {"max_verify": 4, "max_ahead": 16}, "protocol": PROTOCOL_VERSION,
}  # fmt: skip

OTHERS: dict[str, dict[str, object]] = {
    "old": {"protocol": 5},
    "new": {"protocol": 99, "judges": ["later"], "limits": {"max_verify": "many"}},
}
"""A verifier of such a name has these values in its facts."""

DRAINING = {"error": {"message": "it is draining", "code": "draining"}}


def _open(body: bytes, called: str) -> Response:
    (request,) = wire.Decoder().feed(body)
    assert isinstance(request, Open)
    kind = NAME or request.model
    if draining or kind == "draining":
        return JSONResponse(DRAINING, 503)
    machine = VerifyingSession(request, LIMITS, vocabulary_size=VOCABULARY, u=iter(()))
    session = Session(machine, kind, names={called})
    name = f"{RUN}-{len(sessions)}"
    sessions[name] = session
    return StreamingResponse(_stream(session, name, called))


async def _stream(session: Session, name: str, called: str) -> AsyncIterator[bytes]:
    """Send what the machine commits; a model that cuts ends three times before the end."""
    carry = None
    try:
        yield b""  # the head goes at once
        async for piece in _pieces(session, name, called):
            if carry is None and session.carry is not None:
                carry = session.carry
                multiplexed.append(name)
                yield wire.encode(Multiplexed())
            if carry is None:
                yield piece
            else:
                await carry(upload_records.encode_record(name, piece))
    finally:
        session.runs = False
        if carry is not None:
            await carry(upload_records.encode_record(name))


async def _pieces(session: Session, name: str, called: str) -> AsyncIterator[bytes]:
    count = 0
    async for message in _messages(session, name):
        if session.model == "garbage" and count == 3:
            yield bytes([255] * 10)
        frame = wire.encode(message)
        if session.model == "cut" and count == 5 and cuts[called] < 3:
            cuts[called] += 1
            yield frame[: len(frame) // 2]
            return
        yield frame
        count += 1


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
        if session.model == "fault" and judged.start > 5:
            yield Fault("shutting_down", "going home", retryable=True)
            return
        for message in down:
            yield message


def _drafts(session: Session | None, body: bytes) -> Response:
    if session is None or not session.runs:
        return JSONResponse({"error": {"message": "unknown session"}}, 404)
    session.posts += 1
    if session.model == "flaky" and session.posts % 2:
        return Response(status_code=503)
    _take(session, body)
    return Response(status_code=204)


def _take(session: Session, frames: bytes) -> None:
    for message in wire.Decoder().feed(frames):
        assert isinstance(message, Pushed)
        session.machine.receive(message)
