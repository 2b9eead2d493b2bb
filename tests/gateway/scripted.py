"""A scripted engine, a byte tokenizer, and the API served on loopback by uvicorn."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import httpx
import uvicorn
from fastapi import FastAPI
from openai import AsyncOpenAI

from gateway.access import Access, IsMessage
from gateway.app import create_app
from gateway.drain import Drain
from gateway.endpoints.services import Services, one_model
from gateway.errors import ApiError
from gateway.hosting.settings import GatewaySettings
from gateway.ports import (
    MAX_CHAT_BYTES,
    NONE,
    Delta,
    Facts,
    FinishReason,
    GatewayTokenizer,
    Job,
    Json,
    Statistics,
)
from gateway.request_context import Clock
from gateway.tracing import NO_TRACING, Tracing
from gateway.watching import ChainEvent, LinkUse, PassEvent
from speculation.messages import TokenLogprob, Totals

END = 256
"""The stop token of the byte model; tokens 0 to 255 are bytes."""

CONTEXT_TOKENS = 64
SEND_BUFFER_BYTES = 1 << 16
"""What the system holds for a client that does not read; by itself it would hold megabytes."""

MODEL = "bytes-1"
COUNTED = Statistics(Totals(4, 12, 7, filled=1), (3, 3, 1))


Body = dict[str, Any]
"""A JSON object that is sent or answered."""


def _text(content: object) -> str:
    parts = content if isinstance(content, list) else [{"text": content}]
    return "\n".join(part["text"] for part in parts)


@dataclass(eq=False)
class ByteTokenizer:
    """Takes a byte for a token. Its chats show roles and contents; `rendered` has the rest."""

    takes_tools: bool = True
    hides_unused_tools: bool = False
    template: str = ""
    named_tokens: Mapping[str, str] = field(default_factory=lambda: {"eos_token": "<end>"})
    begins: Sequence[int] = ()
    fills_in: bool = True
    tags: Mapping[str, int] = field(default_factory=dict)
    """These texts are tokens of their own."""

    rendered: list[Body] = field(default_factory=list)

    def chat(
        self,
        messages: Sequence[Json],
        *,
        tools: Sequence[Json] = (),
        options: Json = NONE,
        max_bytes: int = MAX_CHAT_BYTES,
    ) -> list[int]:
        self.rendered.append({"messages": messages, "tools": tools, "options": options})
        if messages[0]["role"] == "assistant":
            raise ValueError("the conversation must not begin with the assistant")
        text = "".join(f"{str(m['role'])[0]}:{_text(m['content'])}\n" for m in messages)
        if len(text.encode()) > max_bytes:
            raise OverflowError(text)
        return self.encode(text)

    def encode(self, text: str, *, special: bool = True, begin: bool = True) -> list[int]:
        tokens = [self.tags[text]] if text in self.tags else text.encode()
        return [*self.begins, *tokens] if begin else [*tokens]

    def infill(
        self,
        prefix: str,
        suffix: str,
        snippets: Sequence[Mapping[str, str]] = (),
        max_tokens: int = 0,
    ) -> list[int]:
        if not self.fills_in:
            raise ValueError("the model has no tokens for that")
        shown = "".join(f"[{each['filename']}:{each['text']}]" for each in snippets)
        return self.encode(f"{shown}<{prefix}|{suffix}>")

    def piece(self, token: int, special: bool = False) -> bytes:
        return bytes([token]) if token < END else b"<end>" if special else b""


@dataclass
class ScriptedEngine:
    """Generates `script` (or what it returns for the job), a Delta a chunk, then `then`."""

    script: Sequence[bytes] | Callable[[Job], Sequence[bytes]] = (b"Hi", b" there")
    then: Exception | None = None
    features: frozenset[str] = frozenset()
    context_tokens: int = CONTEXT_TOKENS
    defaults: Mapping[str, float] = field(default_factory=dict)
    adapters: Mapping[str, str] = field(default_factory=dict)
    statistics: Statistics = COUNTED
    jobs: list[Job] = field(default_factory=list)
    closed: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    """Released once by each generator that has been closed."""

    pause: Callable[[], Awaitable[object]] = lambda: asyncio.sleep(0)
    begins_after_s: float = 0.0
    down: ApiError | None = None
    finish: FinishReason = "stop"

    async def facts(self) -> Facts:
        if self.down is not None:
            raise self.down
        facts = Facts(MODEL, self.context_tokens, frozenset({END}), END + 1, self.features)
        return replace(facts, defaults=self.defaults, adapters=self.adapters)

    async def generate(self, job: Job) -> AsyncGenerator[Delta]:
        self.jobs.append(job)
        try:
            if self.begins_after_s:
                await asyncio.sleep(self.begins_after_s)
            if (most := job.prompt_logprobs) is not None:
                wanted = replace(job, top_logprobs=most)
                scores = tuple(_logprob(wanted, token) for token in job.prompt[1:])
                finish: FinishReason | None = None if job.max_tokens else "length"
                yield Delta((), None, finish, self.statistics, prompt_logprobs=scores)
                if finish:
                    return
            chunks = self.script(job) if callable(self.script) else self.script
            for chunk in chunks:
                yield Delta(tuple(chunk), _logprobs(job, chunk), statistics=self.statistics)
                await self.pause()
            if self.then is not None:
                raise self.then
            last = (END,) if self.finish == "stop" else ()
            yield Delta(last, _logprobs(job, last), self.finish, self.statistics)
        finally:
            self.closed.release()


class ReportingEngine(ScriptedEngine):
    """Tells of speculation, whether it was asked or not."""

    async def generate(self, job: Job) -> AsyncGenerator[Delta]:
        self.jobs.append(job)
        chain = ChainEvent(2, 1, 3, False, tuple(b"ck "))
        verified = PassEvent(1, 4, 2, 3, "recovered", 20.0, 1.5, None, 18.0)
        counted = partial(Delta, statistics=self.statistics)
        yield counted(tuple(b"Q"), origins=("target",))
        yield counted((), events=(chain, LinkUse(31.5, 40, 60, "0", 1)))
        origins = ("draft", "lookup", "ahead", "target")
        yield counted(tuple("uiç".encode()), origins=origins, events=(verified,))
        yield counted((END,), finish="stop", origins=("draft",))


def _logprobs(job: Job, tokens: Sequence[int]) -> tuple[TokenLogprob, ...] | None:
    if job.top_logprobs is None:
        return None
    return tuple(_logprob(job, token) for token in tokens)


def _logprob(job: Job, token: int) -> TokenLogprob:
    top = ((token, -0.5), (ord("x"), float("-inf")))
    return TokenLogprob(-0.5, top[: job.top_logprobs])


def make_app(
    engine: ScriptedEngine,
    *,
    clock: Clock | None = None,
    drain: Drain | None = None,
    tokenizer: GatewayTokenizer | None = None,
    is_message: IsMessage = lambda _: False,
    session_paths: str | None = None,
    tracing: Tracing = NO_TRACING,
    **settings: object,
) -> FastAPI:
    async def source(_: str) -> GatewayTokenizer:
        return tokenizer or ByteTokenizer()

    given = GatewaySettings.model_validate(settings)
    access = Access(session_paths, is_message, clock=clock or time.monotonic, tracing=tracing)
    services = Services(
        one_model(engine, source, given), given, drain=drain or Drain(), draw_seed=lambda: 41
    )
    return create_app(services, access)


def client_of(app: FastAPI, headers: Mapping[str, str] | None = None) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app)
    headers = {"content-type": "application/json", **(headers or {})}
    return httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers)


def endpoint_of(body: Mapping[str, object]) -> str:
    """Return the path that takes such a body."""
    named = {"messages": "chat/completions", "input": "responses"}
    return "/v1/" + next((named[name] for name in named if name in body), "completions")


def answers(script: Sequence[tuple[str, str]]) -> Callable[[Job], Sequence[bytes]]:
    """Return a script that answers what a prompt holds, in pieces of five tokens: the text of
    the first key that is in it. It needs a tokenizer of bytes."""

    def reply(job: Job) -> Sequence[bytes]:
        prompt = bytes(job.prompt).decode()
        text = next(text for key, text in script if key in prompt).encode()
        return [text[at : at + 5] for at in range(0, len(text), 5)]

    return reply


async def ask(
    body: Mapping[str, object],
    engine: ScriptedEngine | None = None,
    *,
    path: str = "",
    headers: Mapping[str, str] | None = None,
    **app: Any,  # noqa: ANN401 - what make_app takes
) -> httpx.Response:
    """Return what one request gets of an app of its own. path: by default that of the body."""
    async with client_of(make_app(engine or ScriptedEngine(), **app), headers) as client:
        return await client.post(path or endpoint_of(body), json=body)


def events_of(text: str) -> list[Any]:
    """Return the data of a stream's events; the "[DONE]" at the end of some is a text."""
    lines = (line[6:] for line in text.split("\n") if line.startswith("data: "))
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


class Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


@asynccontextmanager
async def served(
    app: FastAPI, http: type[asyncio.Protocol] | Literal["auto"] = "auto"
) -> AsyncIterator[str]:
    """Serve on loopback; give the base URL. http: uvicorn's protocol."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="critical", lifespan="on", http=http)
        server = Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await server.ready.wait()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


# The real openai SDK as a client of the API, which uvicorn serves on loopback.


@asynccontextmanager
async def sdk(engine: ScriptedEngine, **settings: object) -> AsyncIterator[AsyncOpenAI]:
    """Give a client of an app of its own, whose key is "k"."""
    async with (
        served(make_app(engine, **settings)) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client,
    ):
        yield client


def writes(text: str, **more: Any) -> ScriptedEngine:  # noqa: ANN401 - ScriptedEngine's
    """Return a model that writes a text, three bytes a Delta."""
    data = text.encode()
    return ScriptedEngine([data[at : at + 3] for at in range(0, len(data), 3)], **more)


# A tool, a call of it, and a tokenizer whose template has such calls.

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "%s"}}\n</tool_call>'
HERMES = ByteTokenizer(template="<tool_call>")


# Requests by all endpoints, whose answers have choices and log-probabilities.

HI = [{"role": "user", "content": "Hi"}]
WATCHED = {"stream_options": {"include_speculation": True}, "background": True}
INCLUDED = {"input": "Hi", "include": ["message.output_text.logprobs"]}
Requests = dict[str, tuple[str, Body]]


def requests(choices: int, top: int) -> tuple[Requests, Requests]:
    """Return requests with the likeliest `top` of each token, by all endpoints, and such as run
    in the background."""
    logprobs, many = {"logprobs": True, "top_logprobs": top}, {"messages": HI, "n": choices}
    ollama = {"model": MODEL, **logprobs}
    response = {**INCLUDED, "top_logprobs": top}
    asked = {
        "chat": ("/v1/chat/completions", {**many, **logprobs}),
        "completions": ("/v1/completions", {"prompt": "Hi", "n": choices, "logprobs": top}),
        "responses": ("/v1/responses", response),
        "messages": ("/v1/messages", {"messages": HI, "max_tokens": 9000}),
        "completion": ("/completion", {"prompt": "Hi"}),
        "ollama chat": ("/api/chat", {**ollama, "messages": HI}),
        "ollama text": ("/api/generate", {**ollama, "prompt": "Hi"}),
    }
    apart = {
        "responses": ("/v1/responses", {**response, "background": True}),
        "chat": ("/v1/chat/completions", {**many, **logprobs, **WATCHED}),
    }
    return asked, apart


# Tenants whose keys are "key of" and their name: their file, and what their requests show.

Headers = dict[str, str]
ANN, BEN = ({"authorization": f"Bearer key of {name}"} for name in ("ann", "ben"))


class SetClock:
    """The test sets its time, in seconds."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def table(name: str, key: str = "", more: str = "") -> str:
    """Return the entry of a tenant. more: its limits, a line each."""
    digest = hashlib.sha256((key or f"key of {name}").encode()).hexdigest()
    return f'[{name}]\nsha256 = "{digest}"\n{more}\n'


def keys_toml(file: Path, *names: str) -> Path:
    file.write_text("".join(map(table, names)))
    return file
