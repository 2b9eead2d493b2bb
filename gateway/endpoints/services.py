"""Holds what the routes of one app share, in `Services`."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import Response

from gateway.drain import Drain
from gateway.endpoints.response_store import ResponseStores
from gateway.errors import ApiError, NotFound
from gateway.hosting.settings import GatewaySettings
from gateway.metrics import MetricsPage
from gateway.output.output_format import OutputFormat, OutputFormats
from gateway.ports import SEEDS, Engine, Facts, Fallback, GatewayTokenizer, TokenizerSource
from gateway.prompt_reader import PromptReader
from gateway.request_context import RequestContext
from gateway.schema import RequestModel
from gateway.turns import ThreadTurns

About = Callable[[], Awaitable[dict[str, object]]]
"""Returns the fields of /status that only one service has."""


Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Forward:
    """A request that another service answers: what it is asked for."""

    path: str
    fields: Json
    """These go to the other service, with its own name of the model."""

    model: str
    answers: int = 1
    served_field: str = ""
    """The verifier is asked because it alone serves this field; "" for another reason."""

    is_fallback: bool = False
    """The server of the fallback is asked."""

    is_listed: bool = False
    """The model is on the list of those that an upstream has; else it is a verifier's."""

    ignored: Sequence[str] = ()
    hides_usage: bool = False
    """The edge asks for the stream's `usage`, and the client does not."""

    most_charged_bytes: int | None = None
    """An answer without token counts is charged for at most so much of its request."""


class ProxyPort(Protocol):
    """Asks another service, such as the verifier, to answer in place of this one; what is
    asked there, `gateway.endpoints.answerer` decides."""

    @property
    def models(self) -> Sequence[str]:
        """Return the models that the other service has for clients of this one."""

    @property
    def held_bytes(self) -> int:
        """The body of a request that its endpoint may refuse has at most this many bytes."""

    def is_without_drafts(self, model: str) -> bool:
        """Return True if the verifier in use opens no sessions for a model."""

    def fields_of(self, body: bytes) -> Json:
        """Return those fields of a body that another service may get. Raises
        InvalidRequest."""

    def listed(self, path: str, body: bytes) -> Forward | None:
        """Return what a body asks another service for; None if it names none of its models."""

    def own_api(
        self, path: str, fields: Json, field: str, facts: Facts, schema: type[RequestModel]
    ) -> Forward:
        """Return what to ask the verifier's own API for, which serves `field`. schema: of the
        endpoint that does not. Raises InvalidRequest for what it would ignore."""

    async def prompt(self, fields: Json, facts: Facts) -> tuple[int, ...]:
        """Return the prompt of a chat as the verifier's server makes it. fields: see
        `gateway.endpoints.rendering`. Raises ApiError, EngineFault for what is no prompt."""

    async def answer(self, forward: Forward, services: Services, request: Request) -> Response:
        """Return the other service's answer. Raises ApiError."""


async def _is_here() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Backend:
    """Answers a whole request: the engine of a model, or that of its fallback."""

    engine: Engine
    tokenizer: TokenizerSource
    name: str = ""
    """The name of the model; empty if only the engine's facts have it."""

    aliases: Sequence[str] = ()
    """Other names by which clients may ask for the model."""

    takes_any_name: bool = False
    spares: Sequence[Fallback] = ()
    """The first of these that can answers while the engine cannot."""

    is_away: Callable[[], Awaitable[bool]] = _is_here
    """Returns True if the engine cannot answer a request that comes now."""

    is_local: bool = False
    """True if no other service can answer in the place of this engine."""

    fallback: Fallback | None = None
    """The engine and the tokenizer are this fallback's; None: they are the service's own."""

    async def facts_of(self, model: str | None) -> Facts:
        """Return the engine's facts. Raises NotFound if the engine does not have the model.

        model: None, if a request names none, and the aliases mean the engine's model too. So
        does any name if the fallback answers, because clients then name the missing model, or
        if the settings accept any name. An adapter of the model is named as a model is.
        """
        facts = (await self.engine.facts()).named(model)
        takes_any = self.fallback is not None or self.takes_any_name
        if model is None or takes_any or model in (facts.model, *self.aliases):
            return facts
        raise no_model(model, [facts.model])

    def names_of(self, facts: Facts) -> list[str]:
        """Return all names by which clients may ask for the model and its adapters."""
        aliases = sorted({*self.aliases} - {facts.model})
        return [facts.model, *aliases, *facts.adapters]

    def begin(self, answers: int, facts: Facts) -> str | None:
        """Begin answers. Returns their `system_fingerprint`; None without the fallback."""
        if self.fallback is None:
            return None
        self.fallback.count_answers(answers)
        return f"{self.fallback.name}:{facts.model}"


def no_model(name: str, others: Sequence[str]) -> NotFound:
    """Return the error for a model that a service does not have. others: those that it has."""
    having = ", ".join(map(repr, others)) or "none"
    message = f"the model {name!r} does not exist; this service has {having}"
    return NotFound(message, param="model", code="model_not_found")


class Models(Protocol):
    """The models of a service, which clients tell apart by their names."""

    async def find(self, name: str | None) -> Backend:
        """Return who answers for the model of this name; None: for the first one. Its
        `facts_of` decides if the name is right. Raises NotFound, Unavailable."""

    async def reachable(self) -> Sequence[Backend]:
        """Return who answers for each model that can be reached, as far as is known; for the
        first one if none can."""

    @property
    def away(self) -> Sequence[str]:
        """Return the names of the models that cannot be reached."""


@dataclass(frozen=True, slots=True)
class OneModel:
    """The Models of a service with one."""

    backend: Backend
    away: Sequence[str] = ()

    async def find(self, name: str | None) -> Backend:
        return self.backend

    async def reachable(self) -> Sequence[Backend]:
        return (self.backend,)


def one_model(
    engine: Engine, tokenizer: TokenizerSource, settings: GatewaySettings
) -> OneModel:
    """Return the Models of a service with one engine."""
    aliases, any_name = settings.model_aliases, settings.accept_any_model
    return OneModel(Backend(engine, tokenizer, aliases=aliases, takes_any_name=any_name))


async def _answering(own: Backend, context: RequestContext, path: str) -> Backend:
    """Return who answers a request to a path in place of a backend that cannot; the same one if
    it can, or if nobody else can."""
    if own.spares and await own.is_away():
        for spare in own.spares:
            if await spare.can_answer(path):
                context.outcome.fallback = spare.name
                return Backend(spare.engine, spare.tokenizer, own.name, fallback=spare)
    return own


@contextmanager
def _naming_its_own(context: RequestContext, model: str | None) -> Iterator[None]:
    """Have a NotFound name no models but those that the key opens."""
    try:
        yield
    except NotFound:
        if not (own := context.tenant.models):
            raise
        raise no_model(model or own[0], own) from None


async def _opened(backend: Backend, context: RequestContext, model: str | None) -> Facts:
    """Return the facts of a model that a request asks for. Raises NotFound."""
    facts = await backend.facts_of(model)
    if not _opens(backend, context, facts):
        raise no_model(model or facts.model, context.tenant.models)
    return facts


def _opens(backend: Backend, context: RequestContext, facts: Facts) -> bool:
    """Return True if a key opens a model. A fallback answers for the one that it replaces."""
    replaced = backend.name if backend.fallback else ""
    return context.tenant.opens(replaced or facts.model)


@dataclass(frozen=True, slots=True)
class Listed:
    """A model under one of its names, with who answers for it."""

    name: str
    backend: Backend
    facts: Facts


MODELS: Final = "/v1/models"

MAX_WAITING: Final = 32
"""At most this many large bodies of one tenant wait to be checked, one at a time; the next gets
a 429. Each is in memory."""


@dataclass(frozen=True, slots=True)
class Services:
    models: Models
    settings: GatewaySettings
    about: About | None = None
    proxy: ProxyPort | None = None
    """It lets another service answer."""

    drain: Drain = field(default_factory=Drain)
    """It counts the answers, and rejects new ones once it has begun."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    """/metrics shows it."""

    draw_seed: Callable[[], int] = lambda: secrets.randbelow(SEEDS)
    """Returns the seed of a request that names none."""

    started: int = field(default_factory=lambda: int(time.time()))
    """The app was built at this Unix time, in seconds."""

    output_formats: OutputFormats = field(default_factory=OutputFormats)
    reader: PromptReader = field(default_factory=PromptReader)
    checks: ThreadTurns = field(
        default_factory=partial(ThreadTurns, 1, MAX_WAITING, "large bodies wait to be checked")
    )
    stores: ResponseStores = field(default_factory=ResponseStores)
    metrics_page: MetricsPage = field(default_factory=MetricsPage)

    async def own(self, context: RequestContext, model: str | None) -> tuple[Backend, Facts]:
        """Return who answers for a model, by any of its names, and its facts. model: None, if
        the request names none. Raises NotFound also for one that the key does not open."""
        with _naming_its_own(context, model):
            backend = await self.models.find(context.tenant.usual_model(model))
            return backend, await _opened(backend, context, model)

    async def find(
        self, context: RequestContext, model: str | None, path: str = ""
    ) -> tuple[Backend, Facts]:
        """Do as `own`; but a fallback answers for a model whose engine cannot. path: what the
        request asks for; empty: only an engine here can do it. Raises ApiError."""
        with _naming_its_own(context, model):
            own = await self.models.find(context.tenant.usual_model(model))
            backend = await _answering(own, context, path)
            return backend, await _opened(backend, context, model)

    async def all(self, context: RequestContext) -> list[Listed]:
        """Return the models that a key opens and that can be reached, by all their names.
        Raises ApiError if none can be reached."""
        models, error = list[Listed](), None
        for own in await self.models.reachable():
            try:
                backend = await _answering(own, context, MODELS)
                facts = await backend.engine.facts()
            except ApiError as failed:
                error = error or failed
                continue
            opens = partial(_opens, backend, context)
            named = ((name, facts.named(name)) for name in backend.names_of(facts))
            models += [Listed(name, backend, each) for name, each in named if opens(each)]
        if error is not None and not models:
            raise error
        return models

    def away(self, context: RequestContext) -> list[str]:
        """Return the models that a key opens and that cannot be reached."""
        return [name for name in self.models.away if context.tenant.opens(name)]

    async def output_format_of(
        self, tokenizer: GatewayTokenizer, context: RequestContext
    ) -> OutputFormat:
        if (output_format := self.output_formats.known(tokenizer)) is not None:
            return output_format
        find = partial(self.output_formats.find, tokenizer, self.settings.tool_format)
        return await self.reader.read(context.tenant, find)

    def proxied_models(self, context: RequestContext) -> Sequence[str]:
        """Return the models that a key opens and for which another service is asked."""
        names = self.proxy.models if self.proxy else ()
        return [name for name in names if context.tenant.opens(name)]
