"""What the routes of one app share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from gateway.drain import Drain
from gateway.errors import NotFound
from gateway.output.style import Style, Styles
from gateway.ports import Engine, Facts, Tokenizer, TokenizerSource


@dataclass(frozen=True, slots=True)
class Services:
    engine: Engine
    tokenizer: TokenizerSource
    drain: Drain
    registry: CollectorRegistry
    executor: Executor
    """Runs templates and tokenisation, which would stall every stream for a long prompt."""

    model_aliases: frozenset[str]
    styles: Styles
    max_choices: int
    keep_alive_s: float
    draw_seed: Callable[[], int]
    started: int
    """The Unix time at which the app was built, in seconds."""

    async def style_of(self, tokenizer: Tokenizer) -> Style:
        if (style := self.styles.known(tokenizer)) is not None:
            return style
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.executor, self.styles.find, tokenizer)

    async def facts_of(self, model: str | None) -> Facts:
        """Return the engine's facts; raise NotFound for any model but the engine's.

        model: None, where a request names none, and the aliases mean the engine's too.
        """
        facts = await self.engine.facts()
        if model is not None and model != facts.model and model not in self.model_aliases:
            message = f"the model {model!r} does not exist; this service has {facts.model!r}"
            raise NotFound(message, param="model", code="model_not_found")
        return facts
