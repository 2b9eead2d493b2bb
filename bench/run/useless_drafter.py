"""A drafter that guesses at random: never right, but by chance. It shows what bad drafts cost,
and that they cannot change the text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from speculation.protocol.messages import TokenId
from speculation.sampling.distributions import Q_SCALE, QuantisedDistribution
from speculation.sampling.draft_sampler import DraftSampler
from speculation.sampling.draft_token import DraftToken

STEP_S: Final = 0.02
"""As long as a real draft model of 0.5B takes."""


class UselessDrafter:
    """A Drafter; never full. chance: where its tokens come from. separate: they need a distribution."""

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
        pick: DraftSampler,
        *,
        ahead: Sequence[TokenId] = (),
    ) -> list[DraftToken]:
        """Return any token, sure of it. In `separate` its distribution is that token."""
        await asyncio.sleep(STEP_S)
        return [self._draw()]

    def leave(self) -> None:
        pass


class NoDrafter:
    """A Drafter without seats: the verifier says everything."""

    def take(self, prompt: Sequence[TokenId]) -> None:
        return None

    def close(self) -> None:
        pass
