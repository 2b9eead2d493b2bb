"""Lets a verifier or an upstream answer requests that this edge does not speed up.

These requests have connections of their own: they may be large and their clients slow, and
would hold up the messages of sessions.

Three kinds of requests are passed on: those to a listed path, those for a listed model, and
those that an endpoint refuses though the verifier's own API serves what is refused, such as
images for the verifier's own model. A client may also ask for the same chat without the edge,
to compare; and if an edge and its verifier speak different versions of the protocol, the
verifier answers all requests."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from pydantic import AliasChoices
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as AnyMethod
from starlette.types import Receive, Scope, Send

from edge_agent.link.connection import Connection, Peer
from edge_agent.link.verifiers import Verifiers
from edge_agent.proxied import (
    AS_IT_IS,
    Proxied,
    ProxiedUpload,
    headers_of,
    passes,
    query_of,
    target_of,
)
from edge_agent.settings import EdgeSettings, ProxySettings
from gateway.documents import Route
from gateway.endpoints.chat import ChatRequest
from gateway.endpoints.generation import checked, parse, read
from gateway.endpoints.request import parameters_of, shown_names
from gateway.endpoints.responses_handlers import with_history
from gateway.endpoints.services import Services, no_model
from gateway.errors import (
    UNSUPPORTED,
    ApiError,
    InvalidRequest,
    NotFound,
    renamed,
)
from gateway.hosting.settings import MAX_CHOICES
from gateway.ports import Facts
from gateway.request_context import RequestContext, context_of
from gateway.schema import (
    NEUTRAL,
    OPERATORS,
    RequestModel,
    check_structure,
    is_neutral,
)
from gateway.tenants import salted
from gateway.turns import CHARGED_BYTES_PER_TOKEN
from speculation.messages import SALT, ModelFacts
from speculation.untrusted import Malformed, decode_json, encode_json

# Looks into a request's body to find out whether it is for a listed model, before an endpoint
# reads it. Here nothing is refused: an invalid body goes to the endpoint, which reports what is
# wrong.

MEDIA: Final = frozenset(
    {"image_url", "input_audio", "audio_url", "video_url", "file"}  # of a chat
    | {"input_image", "input_file"}  # of a response
    | {"image", "document"}  # of a message
)
"""Parts of these types have bytes that are no text."""


class _Fields(msgspec.Struct):
    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    messages: Any = None
    input: Any = None


@dataclass(frozen=True, slots=True)
class ProxiedRequest:
    """A request that another service answers."""

    model: str
    answers: int
    has_media: bool


def proxied_request(body: bytes, models: Collection[str]) -> ProxiedRequest | None:
    """Return what a request for a listed model asks for; None if an endpoint here answers
    it."""
    try:
        check_structure(body)
        fields = decode_json(body, _Fields)
        if (model := fields.model) is None or model not in models:
            return None
        has_media = _has_media(fields.messages) or _has_media(fields.input)
    except (ApiError, Malformed, RecursionError):  # `_has_media` goes as deep as the body
        return None
    return ProxiedRequest(model, fields.n or 1, has_media)


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


# Makes the request for a verifier whose own API serves a field, a value or a part of a message
# that no draft can be made under.
#
# Nothing that would be ignored there is passed on: a field that the verifier's API does not
# have is refused by name if it would change the answer here, and left out otherwise; a content
# part that its model does not take is refused by name.

Json = dict[str, Any]

_WITHOUT_EFFECT: Final = frozenset({"prediction", "safety_identifier"})
"""These fields of endpoints change no answer."""

_RESPONSES: Final = "/v1/responses"
_COUNTING: Final = ("/v1/chat/completions", "/v1/completions")
"""A stream of these APIs has `usage` only if the request asks for it."""


@dataclass(frozen=True, slots=True)
class ForVerifier:
    """A request for the verifier's own API. fields: those that it serves."""

    fields: Json
    ignored: Sequence[str]
    answers: int
    hides_usage: bool
    """The edge asks for the stream's `usage`, and the client does not."""


def for_verifier(
    path: str, fields: Json, field: str, facts: ModelFacts, schema: type[RequestModel]
) -> ForVerifier:
    """Return what to ask for a request with the field `field`. path: of the verifier's API,
    which `facts` describe. schema: of the endpoint. Raises InvalidRequest for a field that is
    served only here, and for a content part that is served nowhere."""
    served = facts.served[path]
    values = {name: value for name, value in fields.items() if value is not None}
    ignored = [name for name in values if name not in served]
    known = dict(_defaults(schema))
    for name in ignored:
        if _changes_answers(name, values[name], known):
            reason = f"the verifier alone serves {field}, and it does not know this field"
            raise InvalidRequest.of(name, reason, UNSUPPORTED)
    passed = {name: value for name, value in values.items() if name in served}
    _check_parts(passed, facts.parts.get(path, ()))
    if path == _RESPONSES and values.get("store", True):
        ignored.append("store")  # neither end keeps the response
        passed["store"] = False
    options = values.get("stream_options")
    if isinstance(options, dict) and options.get("include_speculation"):
        ignored.append("stream_options.include_speculation")
    asks = isinstance(options, dict) and options.get("include_usage") is True
    hides_usage = path in _COUNTING and bool(values.get("stream")) and not asks
    if hides_usage:
        passed["stream_options"] = {"include_usage": True}
    return ForVerifier(passed, ignored, _answers(values), hides_usage)


def _defaults(schema: type[RequestModel]) -> Iterator[tuple[str, object]]:
    """Yield the names that a request gives to a schema's fields, and the fields' defaults."""
    for name, field in schema.model_fields.items():
        default = field.get_default(call_default_factory=True)
        also = field.validation_alias
        names = also.choices if isinstance(also, AliasChoices) else (field.alias or name,)
        yield from ((str(each), default) for each in names)


def _changes_answers(name: str, value: object, known: Mapping[str, object]) -> bool:
    if name in NEUTRAL:
        return not is_neutral(value, NEUTRAL[name])
    return (
        name in known and name not in _WITHOUT_EFFECT and not is_neutral(value, (known[name],))
    )


def _check_parts(fields: Json, kinds: Sequence[str]) -> None:
    """Raise InvalidRequest for the first content part that is of none of these types."""
    for path, kind in _parts(fields):
        taken = ("text",) if path.startswith("system") else kinds  # vLLM drops others there
        if kind not in taken:
            reason = f"no such part is served; {', '.join(taken) or 'texts'} are"
            raise InvalidRequest.of(f"{path}.type", reason, UNSUPPORTED)


def _parts(fields: Json) -> Iterator[tuple[str, str]]:
    """Yield path and type of each content part of a request."""
    yield from _parts_of("system", fields.get("system"))
    for name in ("messages", "input"):
        items = fields.get(name)
        for index, item in enumerate(items if isinstance(items, list) else ()):
            if isinstance(item, dict) and item.get("type") != "reasoning":
                yield from _parts_of(f"{name}.{index}.content", item.get("content"))
                yield from _parts_of(f"{name}.{index}.output", item.get("output"))


def _parts_of(path: str, content: object, levels: int = 2) -> Iterator[tuple[str, str]]:
    """levels: a part may have parts itself, as a tool's result has, and those have none."""
    for index, part in enumerate(content if isinstance(content, list) else ()):
        if isinstance(part, dict):
            if isinstance(kind := part.get("type"), str):
                yield f"{path}.{index}", kind
            if levels > 1:
                yield from _parts_of(f"{path}.{index}.content", part.get("content"), 1)


def _answers(fields: Json) -> int:
    """Return how many answers a request asks for; beams count as answers. Raises InvalidRequest
    for a number that is none: another parser might read it as one."""
    number = fields.get("n", 1)
    if type(number) is not int or number < 1:
        raise InvalidRequest.of("n", "expected a whole number from 1")
    prompts = [fields[name] for name in ("prompt", "prompt_embeds") if name in fields]
    return number * max(sum(map(_prompts, prompts)), 1)


def _prompts(value: object) -> int:
    if not isinstance(value, list) or all(type(each) is int for each in value):
        return 1
    return len(value)


HELD_BYTES: Final = 16 << 20
"""A request with images may have this many bytes: it is held to see who answers it. So is any
other until its endpoint has parsed it, which stops others for less than 0.1 s
(tests/hostile/test_longest_stall.py); and request_context.MAX_HELD_BYTES bounds those of one
key."""

MEDIA_BYTES: Final = 1 << 15
"""A request with media is charged for at most this much if its answer has no token counts."""


UPSTREAM: Final = Peer("upstream", "PICOSPEC_PROXY_KEY")

_OPENAI: Final = "/v1/chat/completions"
_NATIVE: Final = ("/completion", "/completions", "/infill", "/api/chat", "/api/generate")
_ENDPOINTS: Final = {
    "/chat/completions": _OPENAI,
    **{path: path for path in (_OPENAI, "/v1/completions", "/v1/responses", "/v1/messages")},
    **{path: path for path in _NATIVE},
}
"""The endpoints of this edge, and their paths at another service."""

DIRECT: Final = "/v1/picospec/direct/chat/completions"
"""The verifier alone answers a chat that is posted here, so that a page which talks only to the
edge can show that both answers are the same for one seed."""

_RENDERING: Final = tuple(
    f"{path}/render" for path in (_OPENAI, "/v1/completions", _RESPONSES, "/v1/messages")
)
"""A verifier's vLLM may answer these with the prompt of a request; its facts have them then."""

WITHOUT_DRAFTS: Final = "undrafted"
"""`x-picospec-fallback` and the log have this value for an answer without drafts, because the
ends speak different versions of the protocol."""


class Proxy:
    """verifiers_of: returns those of a model; for None, of the first. upstream: the connection
    to that of the settings, if any."""

    def __init__(
        self,
        settings: ProxySettings,
        verifiers_of: Callable[[str | None], Verifiers],
        upstream: Connection | None,
    ) -> None:
        self._settings = settings
        self._verifiers_of = verifiers_of
        self._upstream = upstream

    held_bytes = HELD_BYTES

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
        for path in _RENDERING:
            yield Route(
                "POST", path, "The prompt of a request, as vLLM renders it", self.render
            )

    def no_routes(self) -> Iterator[AnyMethod]:
        """Yield routes to add after `routes`, by which other methods get a 404."""
        for path in self._settings.paths:
            for route_path in (path.replace("/*", "/{name:path}"), f"{path}/"):
                yield AnyMethod(route_path, _Nothing())  # otherwise a slash would redirect

    async def answer(self, services: Services, request: Request) -> Response:
        """Pass on a request to a listed path. Raises ApiError."""
        target = target_of(request.scope, self._settings.paths)
        headers = headers_of(request.headers, *AS_IT_IS)
        context = context_of(request)
        services.drain.check()
        context.begin_answers(1)
        if context.tenant.models:
            raise NotFound(f"this key opens single models, and {target} may name any")
        upload, way = ProxiedUpload(request), await self._way()
        context.proxied = way.peer.name
        ask = partial(way.post_to, target, headers, upload.pieces())
        return Proxied(ask, context, services.drain, upload)

    async def proxy_other_model(self, services: Services, request: Request) -> Response | None:
        """Let another service answer a request that has begun, if its body asks for that; None
        if an endpoint of this edge answers it. Raises ApiError."""
        endpoint = _ENDPOINTS.get(request.scope["path"])
        if endpoint is None or not self.models:
            return None
        body = await read(services, request, self.held_bytes)
        proxied = await checked(services, request, partial(proxied_request, body, self.models))
        if proxied is None:
            return None
        context = context_of(request)
        if not context.tenant.opens(proxied.model):
            raise no_model(proxied.model, context.tenant.models)
        way = await self._way()
        context.serve(proxied.model, None, "chat")
        context.begin_answers(proxied.answers - 1)
        context.proxied = way.peer.name
        identity = None if way is self._upstream else _identity(services, context)
        write = partial(addressed, body, proxied.model, identity)
        body_bytes = await checked(services, request, write)
        target = f"{endpoint}{query_of(request.scope)}"
        ask = partial(way.post_to, target, headers_of(request.headers), body_bytes)
        text_bytes = min(len(body_bytes), MEDIA_BYTES) if proxied.has_media else len(body_bytes)
        return Proxied(ask, context, services.drain, asked_bytes=text_bytes)

    async def proxy_refused(
        self,
        schema: type[RequestModel],
        services: Services,
        request: Request,
        error: InvalidRequest,
    ) -> Response | None:
        """Let the verifier answer a request that its endpoint has refused, if its own API
        serves
        what is refused. Raises ApiError."""
        context, path = context_of(request), _ENDPOINTS.get(request.scope["path"], "")
        if not error.may_be_served or context.fallback or context.usage.prompt_tokens:
            return None  # a prompt is charged once
        field = renamed(error.param or "", context.field_names).partition(".")[0]
        try:
            fields = await checked(services, request, partial(_fields, await request.body()))
            _, facts = await services.own(context, _model(fields))
            known = await self._verifiers_of(facts.model).facts()
        except ApiError:  # what is wrong with the request is known already
            return None
        served = field in known.served.get(path, ()) and field != "model"
        if not served or field not in fields:
            return None
        if path == _RESPONSES:
            continued = partial(with_history, services, request, fields)
            fields = await checked(services, request, continued)
        make = partial(for_verifier, path, fields, field, known, schema)
        body_bytes = await checked(services, request, make)
        if body_bytes.answers > MAX_CHOICES:
            return None
        context.ignored = shown_names(body_bytes.ignored)
        return await self._for(field, path, body_bytes, facts, services, request)

    async def _for(
        self,
        field: str,
        path: str,
        body_bytes: ForVerifier,
        facts: Facts,
        services: Services,
        request: Request,
    ) -> Response:
        """Let the verifier's own API answer a request for the sake of a field. Raises
        ApiError."""
        context = context_of(request)
        context.serve(facts.model, None, "chat")
        context.begin_answers(body_bytes.answers - 1)
        context.proxied, context.proxied_for = "verifier", *shown_names((field,))
        identity = _identity(services, context)
        write = partial(_addressed, body_bytes.fields, facts.model, identity)
        body = await checked(services, request, write)
        way = await self._to_verifier(facts.model)
        target = f"{path}{query_of(request.scope)}"
        return Proxied(
            partial(way.post_to, target, headers_of(request.headers), body),
            context,
            services.drain,
            asked_bytes=min(len(body), facts.context_tokens * CHARGED_BYTES_PER_TOKEN),
            hides_usage=body_bytes.hides_usage,
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
        context.ignored = shown_names(parameters.ignored)
        context.begin_answers(body.n)
        context.serve(facts.model, body.model, "chat")
        return await self._from_verifier(_OPENAI, facts.model, services, request)

    async def render(self, services: Services, request: Request) -> Response:
        """Let the verifier in use render a prompt, if it does so. Raises ApiError."""
        services.drain.check()
        context, path = context_of(request), request.scope["path"]
        context.begin_answers(1)
        body = await read(services, request)
        fields = await checked(services, request, partial(_fields, body))
        _, facts = await services.own(context, _model(fields))
        if path not in (await self._verifiers_of(facts.model).facts()).served:
            raise NotFound(f"the verifier has no {path}")
        return await self._from_verifier(path, facts.model, services, request)

    def is_without_drafts(self, model: str) -> bool:
        return not self._verifiers_of(model).current.is_compatible

    async def proxy_without_drafts(
        self, services: Services, request: Request, model: str
    ) -> Response:
        """Let the verifier in use answer a request that was read. Raises ApiError."""
        if self.is_without_drafts(model):
            context_of(request).fallback = WITHOUT_DRAFTS
        return await self._from_verifier(request.scope["path"], model, services, request)

    async def _from_verifier(
        self, path: str, model: str, services: Services, request: Request
    ) -> Response:
        """Return the verifier's answer to a request that has been read and begun."""
        context = context_of(request)
        make = partial(addressed, await request.body(), model, _identity(services, context))
        body = await checked(services, request, make)
        context.proxied = "verifier"
        verifiers = self._verifiers_of(model)
        await verifiers.awake()
        ask = partial(verifiers.current.ask, path, body)
        return Proxied(ask, context, services.drain, asked_bytes=len(body))

    async def _way(self) -> Connection:
        return self._upstream or await self._to_verifier()

    async def _to_verifier(self, model: str | None = None) -> Connection:
        verifiers = self._verifiers_of(model)
        with suppress(ApiError):  # the request that follows reports it
            await verifiers.facts()
        await verifiers.awake()
        return verifiers.current.proxy_connection


def open_proxy(
    settings: EdgeSettings, verifiers_of: Callable[[str | None], Verifiers]
) -> Proxy:
    """Return the proxy of the settings. It connects at first use. Raises OSError."""
    upstream = None
    if url := settings.proxy.url:
        key = next((key.get_secret_value() for key in settings.proxy_key), None)
        upstream = Connection(
            str(url).rstrip("/"),
            key=key,
            ca_certificate=None,
            peer=UPSTREAM,
            prior_knowledge=False,
        )
    return Proxy(settings.proxy, verifiers_of, upstream)


class _Nothing:
    """An ASGI app that answers 404, for methods that a path does not have."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotFound(f"there is no {scope['path']}")


def _identity(services: Services, context: RequestContext) -> str | None:
    """Return what parts a tenant from others at a verifier; None if nothing has to."""
    return context.tenant.identity if services.settings.separates_prefixes else None


def addressed(body: bytes, model: str | None, identity: str | None = None) -> bytes:
    """Return the request for another service, with its own name of the model. Encoding it anew
    removes duplicate fields. identity: of the tenant, if KV of others must not serve it. Raises
    InvalidRequest."""
    return _addressed(_fields(body), model, identity)


def _fields(body: bytes) -> Json:
    try:
        fields = decode_json(body, Json)
    except Malformed as error:  # stricter than `parse`, which takes NaN
        raise InvalidRequest(f"the body is no JSON: {error}") from None
    for name in OPERATORS & fields.keys():
        del fields[name]
    if "messages" in fields:  # a chat that is not drafted ends with its connection
        fields.pop("background", None)
    return fields


def _model(fields: Json) -> str | None:
    model = fields.get("model")
    if model is None or isinstance(model, str):
        return model
    raise InvalidRequest.of("model", "expected a text")


def _addressed(fields: Json, model: str | None, identity: str | None) -> bytes:
    salt = {} if identity is None else {SALT: salted(identity, fields.get(SALT))}
    try:
        return encode_json({**fields, **salt, "model": model})
    except Malformed as error:
        raise InvalidRequest(f"the body cannot be passed on: {error}") from None
