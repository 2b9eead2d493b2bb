"""An upstream or a verifier that says what it was asked, and an edge that proxies to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import msgspec
from fastapi import FastAPI
from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from bench.run.services import free_port
from edge_agent.app import build
from edge_agent.settings import load
from gateway.drain import Drain
from local_models.store import open_store
from tests.gateway.scripted import served
from tests.guards import GUARD_S
from tests.verifier.fake_target import FACTS, FakeTarget
from verifier.app import build as build_verifier
from verifier.settings import load as load_verifier

NOWHERE = "http://127.0.0.1:9"
EMBEDDED = {"data": [], "usage": {"prompt_tokens": 7, "total_tokens": 7}}
MODEL = "elsewhere"
EMBEDDINGS = "/v1/embeddings"
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aa"}}
SEEING = {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, IMAGE]}]}

Answering = Callable[[Request], Awaitable[Response]]


JSON = "application/json"


async def embed(request: Request) -> Response:
    got = sum([len(piece) async for piece in request.stream()])
    return Response(json.dumps({**EMBEDDED, "got": got}), 200, {}, JSON)


@dataclass
class Upstream:
    """An ASGI app. answer: to what it is asked."""

    answer: Answering = embed
    asked: list[Scope] = field(default_factory=list)
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """It is set once a client has left before all of its request was there."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.asked.append(scope)
        self.reached.set()
        try:
            response = await self.answer(Request(scope, receive))
            await response(scope, receive, send)
        except ClientDisconnect:
            self.left.set()
            raise


def streaming(kind: str, pieces: AsyncIterator[bytes], **headers: str) -> Answering:
    async def answer(request: Request) -> Response:
        await request.body()
        return StreamingResponse(pieces, 200, headers, kind)

    return answer


def saying(content: bytes, status: int = 200, kind: str = JSON, **headers: str) -> Answering:
    async def answer(request: Request) -> Response:
        await request.body()
        said = {name.replace("_", "-"): value for name, value in headers.items()}
        return Response(content, status, said, kind)

    return answer


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[str]:
    """Serve by granian, and give the URL."""
    port = free_port()
    server = Server(
        app, port=port, interface=Interfaces.ASGI, http=HTTPModes.auto, websockets=False,
        log_enabled=False,
    )  # fmt: skip
    running = asyncio.create_task(server.serve())
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()
        await running


@asynccontextmanager
async def proxying(
    upstream: Upstream,
    root: Path | None = None,
    drain: Drain | None = None,
    *,
    environ: dict[str, str] | None = None,
    verifier: str = NOWHERE,
    proxy: dict[str, Any] | None = None,
    **settings: object,
) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client of an edge on loopback whose proxy has that upstream. root: its cache."""
    with TemporaryDirectory() as empty:
        async with served(upstream) as url:  # type: ignore[arg-type]  # it is an ASGI app
            given = {"draft_model": "none", "verifier_url": verifier, **settings}
            given["proxy"] = {"url": url, **(proxy or {})}
            store = open_store({"PICOSPEC_CACHE": str(root or empty)})
            app = build(load(None, environ or {}, given), store, drain or Drain())
            async with (
                served(app) as edge,
                httpx.AsyncClient(base_url=edge, timeout=GUARD_S) as client,
            ):
                yield client


@dataclass
class OwnApi:
    """A verifier whose own API serves these fields and parts, by path. answer: of that API."""

    served: dict[str, list[str]]
    answer: Answering
    parts: dict[str, list[str]] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    """The bodies that came to that API."""

    def app(self) -> FastAPI:
        target = FakeTarget()
        target._facts = msgspec.structs.replace(FACTS, served=self.served, parts=self.parts)
        app = build_verifier(load_verifier(None, {}, {}), lambda _: target)
        for path in self.served:
            app.router.routes.insert(0, Route(path, self._own, methods=["POST"]))
        return app

    async def _own(self, request: Request) -> Response:
        self.asked.append(await request.json())
        return await self.answer(request)


# What it serves, what it answers, and an edge before it.

CHATS, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
USER = {"role": "user", "content": "Hi"}
ASK = {"messages": [USER], "max_tokens": 3}
USUAL = [
    "model",
    "max_tokens",
    "max_completion_tokens",
    "stream",
    "stream_options",
    "n",
    "temperature",
]
API = {
    CHATS: [*USUAL, "messages", "bad_words", "echo", "tools", "logprobs", "top_logprobs"],
    COMPLETIONS: [*USUAL, "prompt", "echo", "logprobs", "use_beam_search"],
    RESPONSES: ["model", "input", "store", "include_reasoning", "temperature"],
    "/v1/messages": ["model", "messages", "max_tokens", "system", "vllm_xargs"],
}
USAGE = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
SAID = json.dumps({"id": "theirs", "choices": [{"text": "Ho"}], "usage": USAGE}).encode()


@asynccontextmanager
async def before(api: OwnApi, **settings: object) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client of an edge before a verifier with this API."""
    async with (
        serving(api.app()) as url,
        proxying(Upstream(), verifier=url, proxy={"url": None}, **settings) as client,
    ):
        yield client


async def ask(api: OwnApi, path: str, body: dict[str, Any]) -> httpx.Response:
    """Return what an edge before a verifier with this API answers."""
    async with before(api) as client:
        return await client.post(path, json=body)
