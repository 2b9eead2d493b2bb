"""A verifier whose answers are endless, huge, late or wrong; the first part of a path says how.

`/facts+endless/v1/model-facts` answers facts without end, and `/facts+endless/ready` as a
correct verifier does. What follows a plus is in HOW, and what precedes it in ROUTES.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count, repeat
from typing import Any

from bench.run.services import free_port
from speculation import wire
from speculation.codecs import UINT
from speculation.messages import (
    Commit,
    Down,
    Fault,
    Heartbeat,
    Multiplexed,
    Opened,
    Reject,
    TokenLogprob,
)
from speculation.model_facts import Limits
from tests.edge_agent import fake_verifier
from tests.edge_agent.fake_verifier import FACTS, Receive, Send, target_at
from tests.edge_agent.processes import ROOT, wait_for

ROUTES = {
    "facts": ("GET", "/v1/model-facts"),
    "ready": ("GET", "/ready"),
    "status": ("GET", "/status"),
    "tokenizer": ("GET", "/v1/tokenizer"),
    "open": ("POST", "/v1/speculate"),
    "drafts": ("POST", "/drafts"),
    "chat": ("POST", "/v1/chat/completions"),
}
Body = Iterable[bytes] | AsyncIterator[bytes]
ZEROS = bytes(1 << 16)
ENDLESS = 1 << 11
"""Pieces of an answer without end: 128 MiB, more than anybody reads. The server is not told
that a client has left, and would have time for nothing else if it went on."""

PACKED = gzip.compress(ZEROS * 256, 1)
DRIP_S = 0.05


async def _dripped() -> AsyncIterator[bytes]:
    while True:
        yield b"\0"
        await asyncio.sleep(DRIP_S)


async def _never() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


JSON = {"content-type": "application/json"}
HOW: dict[str, tuple[int, dict[str, str], Callable[[], Body]]] = {
    "endless": (200, {}, lambda: repeat(ZEROS, ENDLESS)),
    "endless-error": (500, {}, lambda: repeat(ZEROS, ENDLESS)),
    "endless-json": (200, JSON, lambda: repeat(ZEROS, ENDLESS)),
    "huge": (200, {}, lambda: repeat(ZEROS, 1 << 10)),
    "packed": (200, {"content-encoding": "gzip"}, lambda: [PACKED]),
    "dripped": (200, {}, _dripped),
    "dripped-error": (503, {}, _dripped),
    "late": (200, {}, _never),
    "short": (200, {"content-length": "1000000"}, lambda: [b"{}"]),
    "garbage": (200, {}, lambda: [os.urandom(4096)]),
    "html": (200, {"content-type": "text/html"}, lambda: [b"<script>alert(1)</script>"]),
    "elsewhere": (302, {"location": "/elsewhere"}, lambda: [b""]),
    "retry": (429, {"retry-after": "9" * 5000}, lambda: [b"{}"]),
    "cookies": (200, {"set-cookie": f"a={'x' * 4000}"}, lambda: [b"{}"]),
}
"""Status, headers and the pieces of the body."""

WRONG_FACTS: dict[str, object] = {
    "vocabulary_size": 2_000_000_000,
    "context_tokens": 1 << 40,
    "padding": 1 << 30,
    "stop_tokens": [1 << 40],
    "stop_tokens ": [*range(900)] * 2,
    "stop_tokens  ": [1000],
    "model": "m" * 5000,
    "vocabulary": "v" * 5000,
    "identity": "i" * 5000,
    "features": ["f"] * 5000,
    "judges": ["coupled"] * 5000,
    "defaults": {str(n): 1.0 for n in range(5000)},
    "limits": {"max_verify": 1 << 40},
    "limits ": {"max_ahead": 1 << 40},
    "limits  ": {"idle_timeout_s": 1e300},
    "protocol": 1 << 70,
}
"""Fields of the facts, which may have spaces after them, and what they may not be."""

LIMITS = Limits(max_verify=4, max_ahead=16)
FIRST = [Opened("s", LIMITS), Commit(0, 0, tuple(target_at(i) for i in range(9)))]


def _logprobs(tokens: int) -> tuple[TokenLogprob, ...]:
    return (TokenLogprob(-1.0, tuple((n, -1.0) for n in range(5000))),) * tokens


def _long(frame_bytes: int) -> bytes:
    return UINT.write(frame_bytes) + bytes(frame_bytes)


def _opened(session: str, limits: Limits = LIMITS) -> bytes:
    return wire.encode(Opened(session, limits))


async def _alive() -> AsyncIterator[bytes]:
    yield b"".join(map(wire.encode, FIRST))
    while True:
        yield wire.encode(Heartbeat())
        await asyncio.sleep(DRIP_S)


SESSIONS: dict[str, Callable[[], Iterator[bytes | Down]]] = {
    "beats": lambda: iter([*FIRST, *repeat(Heartbeat(), 100_000)]),
    "empty": lambda: iter([*FIRST, *(Commit(0, 9, ()) for _ in range(100_000))]),
    "repeated": lambda: iter([*FIRST, *repeat(FIRST[1], 100_000)]),
    "reopened": lambda: iter([*FIRST, *repeat(FIRST[0], 100_000)]),
    "gap": lambda: iter([FIRST[0], Commit(0, 5, (1,))]),
    "changed": lambda: iter([*FIRST, Commit(0, 3, (1,))]),
    "long": lambda: iter([FIRST[0], Commit(0, 0, (1,) * 50_000)]),
    "no-token": lambda: iter([FIRST[0], Commit(0, 0, (1000,))]),
    "logprobs": lambda: iter([FIRST[0], Commit(0, 0, (1,), logprobs=_logprobs(1))]),
    "drafts-of-nobody": lambda: iter([FIRST[0], Commit(0, 0, (1,), accepted=2)]),
    "reject": lambda: iter([*FIRST, Reject(0, 9, 0, ((1, 1.0),), 0.0)]),
    "frame": lambda: iter([FIRST[0], _long(1 << 17)]),
    "path": lambda: iter([_opened("../../health?")]),
    "name": lambda: iter([_opened("s" * 65)]),
    "limits": lambda: iter([_opened("s", Limits(max_verify=1 << 40))]),
    "timeout": lambda: iter([_opened("s", Limits(idle_timeout_s=1e9))]),
    "fault": lambda: iter([FIRST[0], Fault("c" * 9000, "t" * 50_000)]),
    "moved": lambda: iter([*FIRST, Multiplexed()]),
    "cut": lambda: iter(FIRST),
}
"""What the stream of a session has, after which it ends."""


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    _, attack, path = scope["path"].split("/", 2)
    route, _, how = attack.partition("+")
    method, ending = ROUTES.get(route, ("", ""))
    if route == "session" and path.startswith("v1/speculate"):
        await _session(how, path, send)
    elif route == "fact" and path == "v1/model-facts":
        facts = {**FACTS, how.strip(): WRONG_FACTS[how]}
        await answer(send, 200, {}, [json.dumps(facts).encode()])
    elif scope["method"] == method and ending in f"/{path}":
        status, headers, body = HOW[how]
        await answer(send, status, headers, body())
    else:
        await fake_verifier.app({**scope, "path": f"/{path}"}, receive, send)


async def _session(how: str, path: str, send: Send) -> None:
    if path.endswith("/drafts"):
        await answer(send, 204, {}, [])
    elif how == "alive":
        await answer(send, 200, {}, _alive())
    else:
        pieces = (
            each if isinstance(each, bytes) else wire.encode(each) for each in SESSIONS[how]()
        )
        await answer(send, 200, {}, pieces)


async def answer(send: Send, status: int, headers: dict[str, str], body: Body) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    async for piece in body if isinstance(body, AsyncIterator) else _each(body):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _each(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for index, piece in zip(count(), pieces, strict=False):
        yield piece
        if index % 64 == 0:
            await asyncio.sleep(0)


_SERVE = """
import asyncio, importlib, sys
from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server
app = importlib.import_module(sys.argv[2]).app
asyncio.run(Server(
    app, port=int(sys.argv[1]), interface=Interfaces.ASGINL,
    http=HTTPModes.auto, websockets=False, log_enabled=False,
).serve())
"""


@contextmanager
def hostile(module: str = __name__, *arguments: str) -> Iterator[str]:
    """Serve a module's app in a process of its own, and return its address."""
    port = free_port()
    command = [sys.executable, "-c", _SERVE, str(port), module, *arguments]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        try:
            wait_for(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
