"""Holds what the routes of one app share, in `Services`."""

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
from picospec.gateway.doors.responses.store import ResponseStore
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
"""Returns the fields of /status that only one service has."""


class Relay(Protocol):
    """Asks another service, such as the verifier, to answer in place of this one. If a method
    returns None, this service answers the request."""

    @property
    def models(self) -> Sequence[str]:
        """Return the models that the other service has for clients of this one."""

    async def ahead(self, services: Services, request: Request) -> Response | None:
        """Answer a request before its door reads it, depending on its body, which may contain a
        picture. Raises ApiError."""

    async def undrafted(
        self, services: Services, request: Request, model: str
    ) -> Response | None:
        """Answer a request for this model that its door has read, if the verifier opens no
        sessions for the edge. Raises ApiError."""


_WAITING: Final = 32
"""At most this many large bodies of one tenant wait to be checked: each is in memory."""


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
    """The app was built at this Unix time, in seconds."""

    reader: PromptReader = field(default_factory=PromptReader)
    checks: ThreadTurns = field(
        default_factory=partial(ThreadTurns, 1, _WAITING, "large bodies wait to be checked")
    )
    """Large bodies are checked in these turns."""

    stores: WeakKeyDictionary[Tenant, ResponseStore] = field(default_factory=WeakKeyDictionary)
    """Each tenant's kept responses are here for as long as the tenant exists."""

    steady: Steady = field(default_factory=Steady)
    about: About | None = None
    fallback: Fallback | None = None
    relay: Relay | None = None
    falls_back: bool = False
    """True if `engine` and `tokenizer` are the fallback's."""

    async def for_request(self, account: Account) -> Self:
        """Return the services that answer a request that begins now: these, or a copy with the
        fallback's engine. The whole request must be answered by the returned services."""
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
        """Begin answers. Returns their `system_fingerprint`; None without the fallback."""
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
        """Return the models for which another service is asked."""
        return self.relay.models if self.relay else ()

    def names_of(self, facts: Facts) -> list[str]:
        """Return all names by which clients may ask for a model."""
        aliases = sorted({*self.settings.model_aliases} - {facts.model})
        return [facts.model, *aliases, *facts.adapters]

    async def facts_of(self, model: str | None) -> Facts:
        """Return the engine's facts. Raises NotFound if the engine does not have the model.

        model: None, if a request names none, and the aliases mean the engine's model too. So
        does any name if the fallback answers, because clients then name the missing model, or
        if the settings accept any name. An adapter of the model is named as a model is.
        """
        facts = (await self.engine.facts()).named(model)
        if self.falls_back or self.settings.accept_any_model or model is None:
            return facts
        if model != facts.model and model not in self.settings.model_aliases:
            message = f"the model {model!r} does not exist; this service has {facts.model!r}"
            raise NotFound(message, param="model", code="model_not_found")
        return facts
