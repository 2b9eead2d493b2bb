"""A reverse proxy: another service answers requests that this edge does not speed up.

What is asked there, `gateway.endpoints.answerer` decides, but for requests to a listed path, to
DIRECT or for the rendering of a prompt. These requests have connections of their own: they may
be large and their clients slow, and would hold up the messages of sessions. What is listed
passes in either direction, and no more; tokens are counted by the `usage` of an answer.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from functools import partial
from typing import Final

from pydantic import AnyHttpUrl, SecretStr
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edge_agent import forwarding
from edge_agent.link.connection import Connection, Credentials
from edge_agent.link.connection import Response as Answering
from edge_agent.link.errors import VERIFIER, Peer
from edge_agent.link.verifier import ANSWER_TIMEOUT_S
from edge_agent.link.verifiers import Verifiers
from edge_agent.metering import EVENTS, Meter, WithoutUsageEvent
from edge_agent.rendering import rendered
from edge_agent.settings import EdgeSettings, ProxySettings
from gateway.documents import Route
from gateway.drain import Drain
from gateway.endpoints.answer import sent_event
from gateway.endpoints.answerer import CHATS, model_of
from gateway.endpoints.bodies import checked, parse, read
from gateway.endpoints.chat import ChatRequest
from gateway.endpoints.parameters import parameters_of, shown_names
from gateway.endpoints.request import TokenIds
from gateway.endpoints.sending import stream_piece, stream_start
from gateway.endpoints.services import Forward, Json, Services
from gateway.errors import OPENAI, ApiError, ClientGone, InvalidRequest, NotFound, Unavailable
from gateway.http import connected, send_to_client
from gateway.ports import Facts
from gateway.prompt_reader import CHARGED_BYTES_PER_TOKEN
from gateway.request_context import RequestContext, context_of

_PATH: Final = re.compile(r"(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)+")
"""Matches a path that means the same however often it is decoded, and has no `..`."""

_QUERY: Final = re.compile(rb"[!-\"$-~]{0,2048}")
_HEADER: Final = re.compile(r"[ -~]{0,1024}")
_HEADERS: Final = (
    "accept",
    "content-type",
    "anthropic-version",
    "anthropic-beta",
    "openai-beta",
)
"""An upstream gets these headers of the client. A key and a cookie are not among them."""

AS_IT_IS: Final = ("content-length", "content-encoding")
"""These headers are right as long as a body is passed on unchanged."""

_TYPES: Final = {
    "application/json": "application/json",
    "application/x-ndjson": "application/x-ndjson",
    "text/event-stream": EVENTS,
    "text/plain": "text/plain; charset=utf-8",  # of a transcription
    **{kind: kind for kind in ("image/png", "image/jpeg", "image/webp", "image/gif")},
}
"""Maps the content types of answers to those that the client gets. A browser would run others,
such as HTML and SVG, as a part of this edge's page."""

_AUDIO: Final = re.compile(r"audio/[a-z0-9.-]{1,40}(?:; ?[a-z]{1,20}=[a-z0-9]{1,20}){0,3}")

SANDBOX: Final = (b"content-security-policy", b"default-src 'none'; sandbox")
"""Each proxied answer has this header, and those of a stream; its upstream's are dropped."""


def target_of(scope: Scope, patterns: Sequence[str]) -> str:
    """Return the path and query to ask an upstream for. Raises NotFound for a path that matches
    no pattern or is written with escapes; InvalidRequest for the query."""
    if not passes(scope, patterns):
        raise NotFound(f"there is no {scope['path']}")
    return f"{scope['path']}{query_of(scope)}"


def query_of(scope: Scope) -> str:
    """Return the query for an upstream, with its question mark. Raises InvalidRequest."""
    query: bytes = scope["query_string"]
    if not _QUERY.fullmatch(query):
        raise InvalidRequest("the query is too long, or has characters that no URL has")
    return f"?{query.decode()}" if query else ""


def passes(scope: Scope, patterns: Sequence[str]) -> bool:
    """Return True if the path is on the list, as it is written. A pattern may end in `/*`."""
    path: str = scope["path"]
    if not _PATH.fullmatch(path) or scope.get("raw_path", path.encode()) != path.encode():
        return False
    starts = (pattern[:-1] for pattern in patterns if pattern.endswith("/*"))
    return path in patterns or path.startswith(tuple(starts))


def headers_of(headers: Headers, *more: str) -> Mapping[str, str]:
    """Return the request headers that an upstream gets. more: names of further headers to pass
    on. Raises InvalidRequest."""
    passed = {"content-type": "application/octet-stream"}
    for name in (*_HEADERS, *more):
        if values := headers.getlist(name):
            passed[name] = ", ".join(values)
            if not _HEADER.fullmatch(passed[name]):
                raise InvalidRequest(f"the header {name} is wrong", code="invalid_header")
    return passed


def type_of(content_type: str, peer: str) -> str:
    """Return the content type that the client gets for an answer's type. Raises Unavailable."""
    content_type = content_type.strip().lower()
    if _AUDIO.fullmatch(content_type):
        return content_type
    if (kind := _TYPES.get(content_type.partition(";")[0].rstrip())) is None:
        raise Unavailable(
            f"the {peer}'s answer is of a type that is not proxied", code="type_not_relayed"
        )
    return kind


HEAD_S: Final = 600.0
"""A proxied answer must begin within this time after the last piece of its request was
taken."""


class ProxiedUpload:
    """Reads the body from the client no faster than the upstream takes it."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.complete = asyncio.Event()
        """Set once the client has sent the whole body."""

        self.deadline: asyncio.Timeout | None = None
        """The deadline of the answer's head. Each piece extends it, until the head is there."""

        self._taken_bytes = 0
        self.error: ApiError | None = None
        """The reason why the body could not be read; the HTTP client does not report it."""

    @property
    def text_bytes(self) -> int:
        """The bytes of text so far; 0 for a body that is not JSON, such as a recording."""
        is_json = self._request.headers.get("content-type", "").startswith("application/json")
        return self._taken_bytes if is_json else 0

    async def pieces(self) -> AsyncGenerator[bytes]:
        while not self.complete.is_set():
            piece = await self._next()
            if self.deadline is not None and not self.deadline.expired():
                self.deadline.reschedule(asyncio.get_running_loop().time() + HEAD_S)
            if piece:
                yield piece

    async def _next(self) -> bytes:
        """Return the next piece, which may be empty; the last one sets `complete`. Raises
        ApiError."""
        try:
            message = await self._request.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone("the client went away before its request was complete")
        except ApiError as error:
            self.error = error
            raise
        if not message.get("more_body", False):
            self.complete.set()
        piece: bytes = message.get("body", b"")
        self._taken_bytes += len(piece)
        return piece


MAX_BYTES: Final = 256 << 20
"""A longer answer of another service is not passed on; this is hours of audio."""

MAX_S: Final = 7200.0
"""A proxied answer may take this many seconds. A verifier's own limit is as long by default."""

Piece = bytes | bytearray | memoryview
Ask = Callable[[], AbstractAsyncContextManager[Answering]]
"""Opens an answer whose content is still to be read."""


class Proxied(Response):
    """Passes on one answer, once. It ends the other service's before it returns or raises.

    If an answer cannot be completed, a stream of events ends with an error. Others are cut, so
    that nobody takes a part of an answer for all of it.
    """

    def __init__(
        self,
        ask: Ask,
        context: RequestContext,
        drain: Drain,
        upload: ProxiedUpload | None = None,
        asked_bytes: int = 0,
        *,
        hides_usage: bool = False,
    ) -> None:
        """upload: the request's body, if it has not been read. asked_bytes: the size of the
        request's text, by which the prompt is charged if the answer has no token counts.
        hides_usage: the client does not get the event of a stream that only counts."""
        super().__init__()
        self._ask = ask
        self._context = context
        self._drain = drain
        self._upload = upload
        self._asked_bytes = asked_bytes
        self._hides_usage = hides_usage
        self._kind = ""
        self._meter = Meter("")
        self._is_charged = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        complete = self._upload.complete if self._upload else None
        try:
            async with self._drain.answer():
                async with connected(receive, complete):
                    await self._proxy(send)
                await send_to_client(send, stream_piece(b"", more=False))
        except ClientGone as gone:
            self._context.outcome.cut(gone)
        except Exception as raised:
            if isinstance(raised, Unavailable) and (field := self._context.outcome.proxied_for):
                raised.message += f"; it alone serves {field}, so no other one goes on"
            if not self._context.outcome.status:
                self._is_charged = False  # the other service has not taken the request
                raise
            await self._fail(self._context.failed(raised), send)
        finally:
            if self._is_charged:
                self._count()

    async def _proxy(self, send: Send) -> None:
        try:
            async with asyncio.timeout(MAX_S), AsyncExitStack() as stack:
                answer = await self._head(stack)
                await self._pass_on(answer, send)
        except TimeoutError as error:
            raise self._unavailable("takes too long") from error
        except ApiError as error:
            if self._upload is None or self._upload.error is None:
                raise
            raise self._upload.error from error

    @property
    def _peer(self) -> str:
        return self._context.outcome.proxied or "verifier"

    def _unavailable(self, how: str) -> Unavailable:
        return Unavailable(f"the {self._peer} {how}", code=f"{self._peer}_unavailable")

    async def _head(self, stack: AsyncExitStack) -> Answering:
        async with asyncio.timeout(HEAD_S) as deadline:
            if self._upload is None:
                return await stack.enter_async_context(self._ask())
            self._upload.deadline = deadline
            try:
                return await stack.enter_async_context(self._ask())
            finally:
                self._upload.deadline = None

    async def _pass_on(self, answer: Answering, send: Send) -> None:
        self._kind = type_of(answer.headers.get("content-type", ""), self._peer)
        self._meter = Meter(self._kind)
        await send_to_client(send, stream_start(self._kind, SANDBOX))
        hides_usage = self._hides_usage and self._kind == EVENTS
        taken, shown = 0, WithoutUsageEvent() if hides_usage else None
        while (piece := await self._next(answer.content)) is not None:
            taken += len(piece)
            if taken > MAX_BYTES:
                raise Unavailable(f"the {self._peer}'s answer has more than {MAX_BYTES} bytes")
            self._meter.take(piece)
            await send_to_client(send, stream_piece(shown.take(piece) if shown else piece))
        if shown:
            await send_to_client(send, stream_piece(shown.rest))

    async def _next(self, pieces: AsyncIterator[Piece]) -> bytes | None:
        """Return the next piece of an answer, or None at its end. Raises Unavailable."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                piece = await anext(pieces, None)
                return None if piece is None else bytes(piece)
        except TimeoutError as error:
            raise self._unavailable(f"sent nothing for {ANSWER_TIMEOUT_S:g} s") from error

    async def _fail(self, error: ApiError, send: Send) -> None:
        if self._kind == EVENTS:
            shape = self._context.shape
            event = sent_event(shape.body(error), "" if shape is OPENAI else "error")
            if self._meter.is_within_event:
                event = b"\n\n" + event
            with suppress(ClientGone):
                await send_to_client(send, stream_piece(event, more=False))

    def _count(self) -> None:
        """Count the tokens. An answer without counts is charged a token for each event, and its
        prompt by the size of the request."""
        prompt, generated = self._meter.counts()
        if prompt is None:
            body_bytes = self._upload.text_bytes if self._upload else self._asked_bytes
            prompt = body_bytes // CHARGED_BYTES_PER_TOKEN
        self._context.took_prompt(prompt)
        usage = self._context.usage
        usage.completion_tokens = self._meter.events if generated is None else generated


HELD_BYTES: Final = 16 << 20
"""A request with images may have this many bytes: it is held to see who answers it. So is any
other until its endpoint has parsed it, which stops others for less than 0.1 s
(tests/hostile/test_longest_stall.py); and request_context.MAX_HELD_BYTES bounds those of one
key."""

UPSTREAM: Final = Peer("upstream", "PICOSPEC_PROXY_KEY")
SERVER: Final = Peer("server", "PICOSPEC_FALLBACK_KEY")

DIRECT: Final = "/v1/picospec/direct/chat/completions"
"""The verifier alone answers a chat that is posted here, so that a page which talks only to the
edge can show that both answers are the same for one seed."""

_RENDERING: Final = tuple(
    f"{path}/render" for path in (CHATS, "/v1/completions", "/v1/responses", "/v1/messages")
)
"""A verifier's vLLM may answer these with the prompt of a request; its facts have them then."""


class Proxy:
    """verifiers_of: returns those of a model; for None, of the first. upstream, server: the
    connections to that of the settings, and to the server of the fallback, if any."""

    def __init__(
        self,
        settings: ProxySettings,
        verifiers_of: Callable[[str | None], Verifiers],
        upstream: Connection | None,
        server: Connection | None,
    ) -> None:
        self._settings = settings
        self._verifiers_of = verifiers_of
        self._upstream = upstream
        self._server = server

    held_bytes = HELD_BYTES
    fields_of = staticmethod(forwarding.fields_of)
    own_api = staticmethod(forwarding.own_api)

    @property
    def models(self) -> Sequence[str]:
        return self._settings.models

    def body_limit_bytes(self, scope: Scope) -> int | None:
        """Return the size limit of a body that is passed on unread; None for any other."""
        is_relayed = passes(scope, self._settings.paths)
        return self._settings.body_limit_bytes if is_relayed else None

    def routes(self) -> Iterator[Route]:
        for path in self._settings.paths:
            open_ended = path.replace("/*", "/{name:path}")
            yield Route("POST", open_ended, "Passed on to another service", self.pass_on)
        yield Route("POST", DIRECT, "The same chat without the edge", self.direct, ChatRequest)
        for path in _RENDERING:
            yield Route(
                "POST", path, "The prompt of a request, as vLLM renders it", self.render
            )

    async def pass_on(self, services: Services, request: Request) -> Response:
        """Pass on a request to a listed path. Raises ApiError."""
        target = target_of(request.scope, self._settings.paths)
        headers = headers_of(request.headers, *AS_IT_IS)
        context = context_of(request)
        services.drain.check()
        context.begin_answers(1)
        if context.tenant.models:
            raise NotFound(f"this key opens single models, and {target} may name any")
        upload, way = ProxiedUpload(request), await self._way(None)
        context.outcome.proxied = way.peer.name
        ask = partial(way.post_to, target, headers, upload.pieces())
        return Proxied(ask, context, services.drain, upload)

    def listed(self, path: str, body: bytes) -> Forward | None:
        return forwarding.listed(path, body, self.models)

    def is_without_drafts(self, model: str) -> bool:
        return not self._verifiers_of(model).current.model.is_compatible

    async def answer(self, forward: Forward, services: Services, request: Request) -> Response:
        context, model, fields = context_of(request), forward.model, forward.fields
        context.begin_answers(forward.answers - 1)
        if forward.is_fallback and self._server is not None:
            way, fields = self._server, forwarding.for_any_server(forward.path, fields)
        else:
            way = await self._way(None if forward.is_listed else model)
        context.outcome.proxied = way.peer.name
        if field := forward.served_field:
            (context.outcome.proxied_for,) = shown_names((field,))
        parted = services.settings.separates_prefixes and way.peer is VERIFIER
        identity = context.tenant.identity if parted else None
        write = partial(forwarding.addressed, fields, model, identity)
        body = await checked(services, request, write)
        target = f"{forward.path}{query_of(request.scope)}"
        return Proxied(
            partial(way.post_to, target, headers_of(request.headers), body),
            context,
            services.drain,
            asked_bytes=min(len(body), forward.most_charged_bytes or sys.maxsize),
            hides_usage=forward.hides_usage,
        )

    async def direct(self, services: Services, request: Request) -> Response:
        """Let the verifier in use answer a chat with a seed. Raises ApiError."""
        services.drain.check()
        context = context_of(request)
        context.tenant.check_room(context.clock())
        body = await parse(ChatRequest, services, request)
        if body.seed is None:
            raise InvalidRequest("seed: set one, or the two answers will differ", param="seed")
        _, facts = await services.own(context, body.model)
        parameters = await checked(services, request, partial(parameters_of, body, facts))
        context.outcome.ignored = shown_names(parameters.ignored)
        context.begin_answers(1)
        context.serve(facts.model, body.model, "chat")
        make = partial(forwarding.fields_of, await request.body())
        fields = await checked(services, request, make)
        forward = Forward(CHATS, fields, facts.model, body.n)
        return await self.answer(forward, services, request)

    async def prompt(self, fields: Json, facts: Facts) -> TokenIds:
        """Return the prompt of a chat, as the server of the verifier in use makes it. Raises
        EngineFault for an answer that is none, Unavailable, or the verifier's own ApiError."""
        body = forwarding.addressed(fields, facts.model)
        return await rendered(await self._way(facts.model), body, facts)

    async def render(self, services: Services, request: Request) -> Response:
        """Let the verifier in use render a prompt, if it does so. Raises ApiError."""
        services.drain.check()
        context, path = context_of(request), request.scope["path"]
        context.begin_answers(1)
        make = partial(forwarding.fields_of, await read(services, request))
        fields = await checked(services, request, make)
        _, facts = await services.own(context, model_of(fields))
        if path not in facts.served:
            raise NotFound(f"the verifier has no {path}")
        return await self.answer(Forward(path, fields, facts.model), services, request)

    async def _way(self, model: str | None) -> Connection:
        """Return the connection to the verifier in use of a model; for None, to the upstream
        or, without one, to the first model's verifier."""
        if model is None and self._upstream is not None:
            return self._upstream
        verifiers = self._verifiers_of(model)
        if model is None:  # no engine has been asked for its facts
            with suppress(ApiError):  # the request that follows reports it
                await verifiers.facts()
        await verifiers.awake()
        return verifiers.current.proxy_connection


def open_proxy(
    settings: EdgeSettings,
    verifiers_of: Callable[[str | None], Verifiers],
    server: Connection | None = None,
) -> Proxy:
    """Return the proxy of the settings. It connects at first use. Raises OSError."""
    upstream = _connection(settings.proxy.url, settings.proxy_key, UPSTREAM)
    return Proxy(settings.proxy, verifiers_of, upstream, server)


def open_server(settings: EdgeSettings) -> Connection | None:
    """Return the connection to the server of the fallback, if one is set. Raises OSError."""
    return _connection(settings.fallback_server.url, settings.fallback_key, SERVER)


def _connection(
    url: AnyHttpUrl | None, keys: Sequence[SecretStr], peer: Peer
) -> Connection | None:
    if url is None:
        return None
    key = next((key.get_secret_value() for key in keys), None)
    base = str(url).rstrip("/")
    return Connection(base, Credentials(key), peer=peer, prior_knowledge=False)
