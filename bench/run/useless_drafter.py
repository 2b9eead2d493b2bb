"""A drafter that proposes random tokens: `python -m picospec.bench.run.rounds useless`.

It measures what useless drafts cost, and shows that drafts cannot change the text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from picospec.edge_agent.settings import EdgeSettings
from picospec.edge_agent.step_sampler import StepSampler
from picospec.models.llama_cpp.model import Model
from picospec.speculation.protocol.messages import TokenId
from picospec.speculation.sampling.distributions import Q_SCALE, QuantisedDistribution
from picospec.speculation.sampling.draft_token import DraftToken

STEP_S: Final = 0.02
"""A step takes so long: about what a draft model of 0.5 billion weights takes on one core."""


@dataclass(slots=True)
class UselessDrafter:
    """A Drafter that is the slot of each of its sessions."""

    vocabulary_size: int
    chance: np.random.Generator
    separate: bool
    """It says whether each token needs its distribution."""

    stuck: bool = False
    read_tokens: int = 0

    def take(
        self, prompt: Sequence[TokenId], owner: object = None, *, whole: bool = False
    ) -> UselessDrafter:
        return self

    async def step(
        self,
        context: Sequence[TokenId],
        sampler: StepSampler,
        *,
        ahead: Sequence[TokenId] = (),
    ) -> list[DraftToken]:
        """Return a random token with confidence 1 and, in `separate`, all weight on it."""
        await asyncio.sleep(STEP_S)
        token = int(self.chance.integers(self.vocabulary_size))
        certain = QuantisedDistribution(np.array([token]), np.array([Q_SCALE]))
        return [DraftToken(token, 1.0, certain if self.separate else None)]

    def leave(self) -> None:
        """End a session."""

    async def watch(self) -> None:
        """Notice nothing: no step hangs."""

    def close(self) -> bool:
        """Hold nothing."""
        return True


def make_drafter(model: Model | None, settings: EdgeSettings) -> UselessDrafter:
    """Return the drafter for an edge with these settings."""
    tokens = 1 if model is None else len(model.vocabulary.pieces)
    return UselessDrafter(tokens, np.random.default_rng(), settings.judge == "separate")
