"""A drafter that guesses at random: never right, but by chance. It shows what bad drafts cost,
and that they cannot change the text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from edge_agent.guessing import Pick
from speculation.guess import Guess
from speculation.laws import Q_SCALE, DraftLaw
from speculation.messages import TokenId

STEP_S: Final = 0.02
"""As long as a real draft model of 0.5B takes."""


class UselessDrafter:
    """A Drafter; never full. chance: where its tokens come from. separate: they need a law."""

    def __init__(
        self, vocabulary_size: int, chance: np.random.Generator, *, separate: bool
    ) -> None:
        self._vocabulary_size = vocabulary_size
        self._chance = chance
        self._separate = separate

    def take(self, prompt: Sequence[TokenId]) -> UselessSeat:
        return UselessSeat(self._draw)

    def _draw(self) -> Guess:
        token = int(self._chance.integers(self._vocabulary_size))
        certain = DraftLaw(np.array([token]), np.array([Q_SCALE]))
        return Guess(token, 1.0, certain if self._separate else None)

    def close(self) -> None:
        pass


class UselessSeat:
    def __init__(self, draw: Callable[[], Guess]) -> None:
        self.context_tokens = 1 << 30
        self._draw = draw

    async def step(
        self,
        context: Sequence[TokenId],
        pick: Pick,
        *,
        ahead: Sequence[TokenId] = (),
    ) -> list[Guess]:
        """Return any token, sure of it. In `separate` its law is that token."""
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
