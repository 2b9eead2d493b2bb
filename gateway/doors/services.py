"""What the routes of one app share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Protocol, Self
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import Response

from picospec.gateway.accounts.account import Account
from picospec.gateway.doors.responses.store import Shelf
from picospec.gateway.drain import Drain
from picospec.gateway.errors import NotFound
from picospec.gateway.hosting.settings import GatewaySettings
from picospec.gateway.output.steady import Steady
from picospec.gateway.output.style import Style, Styles
from picospec.gateway.ports import Engine, Facts, Fallback
from picospec.gateway.tenants.reading import PromptReader
from picospec.gateway.tenants.tenant import Tenant
from picospec.gateway.tenants.turns import ThreadTurns
from picospec.gateway.tokenizer import Tokenizer, TokenizerSource

About = Callable[[], Awaitable[dict[str, object]]]
"""A function that returns what /status says of one service alone."""


class Relay(Protocol):
    """Asks another service, such as the verifier, to answer in place of this one. Where a
    method returns None, the request is answered here."""

    @property
    def models(self) -> Sequence[str]:
        """The models that the other one has for clients of this one."""

    async def ahead(self, services: Services, request: Request) -> Response | None:
        """Answer a request before its door reads it, by what is in its body, such as a picture.
        Raises ApiError."""

    async def undrafted(
        self, services: Services, request: Request, model: str
    ) -> Response | None:
        """Answer a request for this model that its door has read, where the verifier opens no
        sessions for the edge. Raises ApiError."""


_WAITING: Final = 32
"""So many large bodies of one tenant may wait to be checked: each is in memory."""


@dataclass(frozen=True, slots=True)
class Services:
    engine: Engine
    tokenizer: TokenizerSource
    drain: Drain
    registry: CollectorRegistry
    settings: GatewaySettings
    styles: Styles
    draw_seed: Callable[[], int]
    started: int
    """The Unix time at which the app was built, in seconds."""

    reader: PromptReader = field(default_factory=PromptReader)
    checks: ThreadTurns = field(
        default_factory=partial(ThreadTurns, 1, _WAITING, "large bodies wait to be checked")
    )
    """The turns in which large bodies are checked."""

    shelves: WeakKeyDictionary[Tenant, Shelf] = field(default_factory=WeakKeyDictionary)
    """The responses that are kept of each tenant, for as long as there is the tenant."""

    steady: Steady = field(default_factory=Steady)
    about: About | None = None
    fallback: Fallback | None = None
    relay: Relay | None = None
    falls_back: bool = False
    """It is true if `engine` and `tokenizer` are the fallback's."""

    async def for_request(self, account: Account) -> Self:
        """Return the services that answer a request that begins now: these, or the same with
        the fallback's engine. All of the request must be answered by what is returned."""
        if self.fallback is None or not await self.fallback.is_needed():
            return self
        account.fallback = self.fallback.name
        return replace(
            self,
            engine=self.fallback.engine,
            tokenizer=self.fallback.tokenizer,
            falls_back=True,
        )

    def begin(self, answers: int, facts: Facts) -> str | None:
        """Begin answers; return their `system_fingerprint`, which only the fallback's have."""
        if not self.falls_back or self.fallback is None:
            return None
        self.fallback.count_answers(answers)
        return f"{self.fallback.name}:{facts.model}"

    async def style_of(self, tokenizer: Tokenizer, account: Account) -> Style:
        if (style := self.styles.known(tokenizer)) is not None:
            return style
        return await self.reader.read(account.tenant, partial(self.styles.find, tokenizer))

    @property
    def models_elsewhere(self) -> Sequence[str]:
        """The models for which another service is asked."""
        return self.relay.models if self.relay else ()

    def names_of(self, facts: Facts) -> list[str]:
        """Return all names by which clients may ask for a model."""
        aliases = sorted({*self.settings.model_aliases} - {facts.model})
        return [facts.model, *aliases, *facts.adapters]

    async def facts_of(self, model: str | None) -> Facts:
        """Return the engine's facts; raise NotFound for any model but the engine's.

        model: None, where a request names none, and the aliases mean the engine's too. So does
        any name where the fallback answers, as clients name the model that is away, and where
        the settings accept any. An adapter of the model is named as a model is.
        """
        facts = (await self.engine.facts()).named(model)
        if self.falls_back or self.settings.accept_any_model or model is None:
            return facts
        if model != facts.model and model not in self.settings.model_aliases:
            message = f"the model {model!r} does not exist; this service has {facts.model!r}"
            raise NotFound(message, param="model", code="model_not_found")
        return facts
