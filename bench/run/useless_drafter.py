"""A drafter that proposes random tokens: `python -m bench.run.rounds useless`.

It measures what useless drafts cost, and shows that drafts cannot change the text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import numpy as np

from edge_agent.settings import EdgeSettings
from models.llama import Model
from speculation.protocol.messages import TokenId
from speculation.sampling.distributions import Q_SCALE, QuantisedDistribution
from speculation.sampling.draft_sampler import DraftSampler
from speculation.sampling.draft_token import DraftToken

STEP_S: Final = 0.02
"""Duration of a step: about what a draft model of 0.5 billion weights takes on one core."""


class UselessDrafter:
    """A Drafter that is the slot of each of its sessions.

    chance: the source of its tokens. separate: whether each needs its distribution.
    """

    context_tokens = 1 << 30

    def __init__(
        self, vocabulary_size: int, chance: np.random.Generator, *, separate: bool
    ) -> None:
        self._vocabulary_size = vocabulary_size
        self._chance = chance
        self._separate = separate

    def take(self, prompt: Sequence[TokenId]) -> UselessDrafter:
        return self

    async def step(
        self,
        context: Sequence[TokenId],
        sampler: DraftSampler,
        *,
        ahead: Sequence[TokenId] = (),
    ) -> list[DraftToken]:
        """Return a random token with confidence 1 and, in `separate`, all weight on it."""
        await asyncio.sleep(STEP_S)
        token = int(self._chance.integers(self._vocabulary_size))
        certain = QuantisedDistribution(np.array([token]), np.array([Q_SCALE]))
        return [DraftToken(token, 1.0, certain if self._separate else None)]

    def leave(self) -> None:
        """End a session."""

    def close(self) -> None:
        """Hold nothing."""


def make_drafter(model: Model, settings: EdgeSettings) -> UselessDrafter:
    """Return the drafter for an edge with these settings."""
    separate = settings.judge == "separate"
    return UselessDrafter(model.vocabulary_size, np.random.default_rng(), separate=separate)
