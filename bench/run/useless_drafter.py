"""An edge whose drafter proposes random tokens: the product but for its drafts, without lookup.

    python -m bench.run.useless_drafter --verifier-url ... --draft-model ...

It measures what useless drafts cost, and shows that drafts cannot change the text.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Final

import numpy as np
import typer
from pydantic import ValidationError

from edge_agent.__main__ import serve
from edge_agent.settings import EdgeSettings, load
from models.llama import Model
from speculation.protocol.messages import TokenId
from speculation.sampling.distributions import Q_SCALE, QuantisedDistribution
from speculation.sampling.draft_sampler import DraftSampler
from speculation.sampling.draft_token import DraftToken

STEP_S: Final = 0.02
"""Duration of a step: about what a draft model of 0.5 billion weights takes on one core."""


class UselessDrafter:
    """A Drafter with any number of slots.

    chance: the source of its tokens. separate: whether each needs its distribution.
    """

    def __init__(
        self, vocabulary_size: int, chance: np.random.Generator, *, separate: bool
    ) -> None:
        self._vocabulary_size = vocabulary_size
        self._chance = chance
        self._separate = separate

    def take(self, prompt: Sequence[TokenId]) -> UselessSlot:
        return UselessSlot(self._draw)

    def _draw(self) -> DraftToken:
        token = int(self._chance.integers(self._vocabulary_size))
        certain = QuantisedDistribution(np.array([token]), np.array([Q_SCALE]))
        return DraftToken(token, 1.0, certain if self._separate else None)

    def close(self) -> None:
        pass


class UselessSlot:
    def __init__(self, draw: Callable[[], DraftToken]) -> None:
        self.context_tokens = 1 << 30
        self._draw = draw

    async def step(
        self,
        context: Sequence[TokenId],
        sampler: DraftSampler,
        *,
        ahead: Sequence[TokenId] = (),
    ) -> list[DraftToken]:
        """Return a random token with confidence 1 and, in `separate`, all weight on it."""
        await asyncio.sleep(STEP_S)
        return [self._draw()]

    def leave(self) -> None:
        pass


def make_drafter(model: Model, settings: EdgeSettings) -> UselessDrafter:
    """Return the drafter for an edge with these settings."""
    return UselessDrafter(
        model.vocabulary_size, np.random.default_rng(), separate=settings.judge == "separate"
    )


def main(
    host: Annotated[str, typer.Option()],
    port: Annotated[int, typer.Option()],
    verifier_url: Annotated[str, typer.Option()],
    draft_model: Annotated[str, typer.Option(help="Only its vocabulary is used.")],
) -> None:
    """Serve the OpenAI API with useless drafts; other settings come from the environment."""
    named = {
        "host": host, "port": port, "verifier_url": verifier_url, "draft_model": draft_model,
        "drafter": "none", "lookup": False,
    }  # fmt: skip
    try:
        settings = load(None, os.environ, named)
    except (ValidationError, ValueError) as error:
        sys.exit(f"settings: {error}")
    serve(settings, make_drafter=make_drafter)


if __name__ == "__main__":
    typer.run(main)
