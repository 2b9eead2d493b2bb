"""Lets a verifier or an upstream answer requests that this edge does not speed up.

These requests have connections of their own: they may be large and their clients slow, and
would hold up the messages of sessions.

Three kinds of requests are passed on: those to a listed path, those for a listed model, and
those with images or other media for the verifier's own model. A client may also ask for the
same chat without the edge, to compare; and if an edge and its verifier speak different versions
of the protocol, the verifier answers all requests.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as AnyMethod
from starlette.types import Receive, Scope, Send

from picospec.edge_agent.link.connection import Connection, Peer, connections
from picospec.edge_agent.link.verifiers import Verifiers
from picospec.edge_agent.relayed import (
    AS_IT_IS,
    Relayed,
    Upload,
    headers_of,
    passes,
    query_of,
    target_of,
)
from picospec.edge_agent.settings import EdgeSettings, RelaySettings
from picospec.gateway.accounts import Account, account_of
from picospec.gateway.documents import Route
from picospec.gateway.doors.chat import ChatRequest
from picospec.gateway.doors.generation import checked, parse, read
from picospec.gateway.doors.services import Services
from picospec.gateway.errors import ApiError, InvalidRequest, NotFound
from picospec.gateway.schema import check_structure
from picospec.gateway.tenants import salted
from picospec.speculation.messages import SALT

# Looks into a request's body to find out who answers it, before a door reads it.
#
# A door refuses what it does not know, such as an image. Here nothing is refused: an invalid
# body goes to the door, which reports what is wrong with it.

MEDIA: Final = frozenset(
    {"image_url", "input_audio", "audio_url", "video_url", "file"}  # of a chat
    | {"input_image", "input_file"}  # of a response
    | {"image", "document"}  # of a message
)
"""No draft model reads parts of these types."""

_MARKS: Final = tuple(f'"{kind}"'.encode() for kind in sorted(MEDIA))


class _Fields(msgspec.Struct):
    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    messages: Any = None
    input: Any = None


@dataclass(frozen=True, slots=True)
class RelayedRequest:
    """A request that another service answers. model: as the request names it."""

    model: str | None
    answers: int
    has_media: bool


def relayed_request(body: bytes, models: Collection[str]) -> RelayedRequest | None:
    """Return what a request wants from another service; None if a door here answers it."""
    has_marks = any(mark in body for mark in _MARKS)
    if not (has_marks or models):
        return None
    try:
        check_structure(body)
        fields = msgspec.json.decode(body, type=_Fields)
        has_media = has_marks and (_has_media(fields.messages) or _has_media(fields.input))
    except (ApiError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if not (has_media or fields.model in models):
        return None
    return RelayedRequest(fields.model, fields.n or 1, has_media)


def _has_media(items: object) -> bool:
    """Return True if a list contains media parts: directly, in messages, or in their parts."""
    if not isinstance(items, list):
        return False
    return any(
        isinstance(item, dict)
        and (_is_medium(item.get("type")) or _has_media(item.get("content")))
        for item in items
    )


def _is_medium(kind: object) -> bool:
    return isinstance(kind, str) and kind in MEDIA


HELD_BYTES: Final = 16 << 20
"""A request with images may have this many bytes: it is held to see which model it is for."""

MEDIA_BYTES: Final = 1 << 15
"""A request with media is charged for at most this much if its answer has no token counts."""


UPSTREAM: Final = Peer("upstream", "PICOSPEC_RELAY_KEY")

_OPENAI: Final = "/v1/chat/completions"
_NATIVE: Final = ("/completion", "/completions", "/infill", "/api/chat", "/api/generate")
_DOORS: Final = {
    "/chat/completions": _OPENAI,
    **{path: path for path in (_OPENAI, "/v1/completions", "/v1/responses", "/v1/messages")},
    **{path: path for path in _NATIVE},
}
"""The doors of this edge, and their paths at another service."""

DIRECT: Final = "/v1/picospec/direct/chat/completions"
"""The verifier alone answers a chat that is posted here, so that a page which talks only to the
edge can show that both answers are the same for one seed."""

UNDRAFTED: Final = "undrafted"
"""`x-picospec-fallback` and the log have this value for an answer without drafts, because the
ends speak different versions of the protocol."""


class Relay:
    """to_verifiers: a connection to each. upstream: that of the settings, if any."""

    def __init__(
        self,
        settings: RelaySettings,
        verifiers: Verifiers,
        to_verifiers: Sequence[Connection],
        upstream: Connection | None,
    ) -> None:
        self._settings = settings
        self._verifiers = verifiers
        self._to_verifiers = to_verifiers
        self._upstream = upstream

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
            yield Route("POST", open_ended, "Passed on to another service", self.answer)
        yield Route("POST", DIRECT, "The same chat without the edge", self.direct, ChatRequest)

    def no_routes(self) -> Iterator[AnyMethod]:
        """Yield routes to add after `routes`, by which other methods get a 404."""
        for path in self._settings.paths:
            for found in (path.replace("/*", "/{name:path}"), f"{path}/"):
                yield AnyMethod(found, _Nothing())  # otherwise a slash would redirect

    async def answer(self, services: Services, request: Request) -> Response:
        """Pass on a request to a listed path. Raises ApiError."""
        target = target_of(request.scope, self._settings.paths)
        headers = headers_of(request.headers, *AS_IT_IS)
        account = account_of(request)
        services.drain.check()
        account.begin_answers(1)
        upload, way = Upload(request), await self._way()
        account.relayed = way.peer.name
        ask = partial(way.post_to, target, headers, upload.pieces())
        return Relayed(ask, account, services.drain, upload)

    async def ahead(self, services: Services, request: Request) -> Response | None:
        """Let another service answer a request that has begun, if its body asks for that; None
        if a door of this edge answers it. Raises ApiError."""
        door = _DOORS.get(request.scope["path"])
        if door is None or (door in _NATIVE and not self.models):
            return None
        body = await read(services, request, HELD_BYTES)
        relayed = await checked(services, request, partial(relayed_request, body, self.models))
        if relayed is None or (door in _NATIVE and relayed.model not in self.models):
            return None
        account = account_of(request)
        if (model := relayed.model) in self.models:
            way = await self._way()
        else:  # the verifier's own model, or an unknown one
            facts, way = await services.own.facts_of(model), await self._to_verifier()
            model = facts.model
        account.serve(model or "", None, "chat")
        account.begin_answers(relayed.answers - 1)
        account.relayed = way.peer.name
        identity = None if way is self._upstream else _identity(services, account)
        asked = await checked(services, request, partial(addressed, body, model, identity))
        target = f"{door}{query_of(request.scope)}"
        ask = partial(way.post_to, target, headers_of(request.headers), asked)
        text_bytes = min(len(asked), MEDIA_BYTES) if relayed.has_media else len(asked)
        return Relayed(ask, account, services.drain, asked_bytes=text_bytes)

    async def direct(self, services: Services, request: Request) -> Response:
        """Let the verifier in use answer a chat with a seed. Raises ApiError."""
        services.drain.check()
        account = account_of(request)
        account.tenant.check_room(account.clock())
        body = await parse(ChatRequest, services, request)
        if body.seed is None:
            raise InvalidRequest("seed: set one, or the two answers will differ", param="seed")
        facts = await services.own.facts_of(body.model)
        account.begin_answers(body.n)
        account.serve(facts.model, body.model, "chat")
        return await self._from_verifier(_OPENAI, facts.model, services, request)

    @property
    def is_undrafted(self) -> bool:
        return not self._verifiers.current.is_compatible

    async def undrafted(self, services: Services, request: Request, model: str) -> Response:
        """Let the verifier in use answer a request that was read. Raises ApiError."""
        account_of(request).fallback = UNDRAFTED
        return await self._from_verifier(request.scope["path"], model, services, request)

    async def _from_verifier(
        self, path: str, model: str, services: Services, request: Request
    ) -> Response:
        """Return the verifier's answer to a request that has been read and begun."""
        account = account_of(request)
        make = partial(addressed, await request.body(), model, _identity(services, account))
        body = await checked(services, request, make)
        account.relayed = "verifier"
        ask = partial(self._verifiers.current.ask, path, body)
        return Relayed(ask, account, services.drain, asked_bytes=len(body))

    async def _way(self) -> Connection:
        return self._upstream or await self._to_verifier()

    async def _to_verifier(self) -> Connection:
        with suppress(ApiError):  # the request that follows reports it
            await self._verifiers.facts()
        return self._to_verifiers[self._verifiers.current.number]


def open_relay(settings: EdgeSettings, verifiers: Verifiers) -> Relay:
    """Return the relay of the settings. It connects at first use. Raises OSError."""
    to_verifiers = connections(settings, prior_knowledge=False)
    upstream = None
    if url := settings.relay.url:
        key = next((key.get_secret_value() for key in settings.relay_key), None)
        upstream = Connection(
            str(url).rstrip("/"),
            key=key,
            ca_certificate=None,
            peer=UPSTREAM,
            prior_knowledge=False,
        )
    return Relay(settings.relay, verifiers, to_verifiers, upstream)


class _Nothing:
    """An ASGI app that answers 404, for methods that a path does not have."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotFound(f"there is no {scope['path']}")


def _identity(services: Services, account: Account) -> str | None:
    """Return what parts a tenant from others at a verifier; None if nothing has to."""
    return account.tenant.identity if services.settings.separates_prefixes else None


def addressed(body: bytes, model: str | None, identity: str | None = None) -> bytes:
    """Return the request for another service, with its own name of the model. Encoding it anew
    removes duplicate fields. identity: of the tenant, if KV of others must not serve it. Raises
    InvalidRequest."""
    try:
        fields = msgspec.json.decode(body)
    except ValueError as error:  # stricter than `parse`, which takes NaN
        raise InvalidRequest(f"the body is no JSON: {error}") from None
    if "messages" in fields:  # a chat that is not drafted ends with its connection
        fields.pop("background", None)
    salt = {} if identity is None else {SALT: salted(identity, fields.get(SALT))}
    return msgspec.json.encode({**fields, **salt, "model": model})
