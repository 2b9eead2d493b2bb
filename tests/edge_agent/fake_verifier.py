"""A small verifier over the real machine, whose target generates position * 3 + 100.

granian serves it in a process of its own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive as Receive
from starlette.types import Scope
from starlette.types import Send as Send

from speculation import wire
from speculation.judge import Judgement
from speculation.messages import Down, Fault, Open, Opened, Pushed
from speculation.model_facts import PROTOCOL_VERSION, Limits
from speculation.verify_session import VerifyingSession

NAME = ""
"""How this process misbehaves: `fault` ends each session after a few tokens."""

VOCABULARY = 1000
PASS_S = 0.01
LIMITS = Limits(max_verify=4, max_ahead=16)
FACTS = {
    "model": "plain", "vocabulary_size": VOCABULARY, "vocabulary": "fake",
    "context_tokens": 512, "stop_tokens": [7],
    "judges": ["coupled", "separate"], "features": [],
    "limits": {"max_verify": 4, "max_ahead": 16}, "protocol": PROTOCOL_VERSION,
}  # fmt: skip


def target_at(position: int) -> int:
    return 100 + 3 * position % 800


@dataclass
class Session:
    machine: VerifyingSession
    runs: bool = True


sessions: dict[str, Session] = {}
"""All that were opened here."""

RUN = f"{os.getpid():08d}"
"""What the names of this process's sessions begin with."""


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        response = await _answer(Request(scope, receive))
        await response(scope, receive, send)


async def _answer(request: Request) -> Response:
    path = request.scope["path"]
    if path == "/v1/speculate/uploads":
        return Response(status_code=404)  # its edges post what they draft
    body = await request.body()
    match path:
        case "/ready":
            return Response()
        case "/v1/model-facts":
            return JSONResponse(FACTS)
        case "/v1/speculate":
            return _open(body)
    session = sessions.get(path.removeprefix("/v1/speculate/").partition("/")[0])
    if session is None or not session.runs:
        return JSONResponse({"error": {"message": "unknown session"}}, 404)
    for message in wire.Decoder().feed(body):
        assert isinstance(message, Pushed)
        session.machine.receive(message)
    return Response(status_code=204)


def _open(body: bytes) -> Response:
    (request,) = wire.Decoder().feed(body)
    assert isinstance(request, Open)
    machine = VerifyingSession(request, LIMITS, vocabulary_size=VOCABULARY, u=iter(()))
    name = f"{RUN}-{len(sessions)}"
    sessions[name] = Session(machine)
    return StreamingResponse(_stream(sessions[name], name))


async def _stream(session: Session, name: str) -> AsyncIterator[bytes]:
    try:
        async for message in _messages(session.machine, name):
            yield wire.encode(message)
    finally:
        session.runs = False


async def _messages(machine: VerifyingSession, name: str) -> AsyncIterator[Down]:
    yield Opened(name, LIMITS)
    while not machine.finished:
        judged = machine.begin(len(machine.plan(4)))
        await asyncio.sleep(PASS_S)
        truth = [target_at(judged.start + i) for i in range(len(judged.draft) + 1)]
        matches = [a == b for a, b in zip(judged.draft, truth, strict=False)]
        accepted = matches.index(False) if False in matches else len(matches)
        down = machine.resolve(Judgement(tuple(truth[: accepted + 1]), accepted), pass_s=PASS_S)
        if NAME == "fault" and judged.start > 5:
            yield Fault("shutting_down", "going home", retryable=True)
            return
        for message in down:
            yield message
