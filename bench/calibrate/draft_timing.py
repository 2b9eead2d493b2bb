"""How long the draft model takes for a guess, over the tokens it must read for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle
from statistics import median
from time import perf_counter
from typing import Final

from edge_agent.draft_model.drafter import DraftSlot as Seat
from speculation.protocol.messages import Sampling, TokenId
from speculation.sampling.draft_sampler import coupled

READ: Final = (1, 2, 4, 8, 16)
"""Tokens: 1 in a chain, more where the target went ahead of it."""

REPEATS: Final = 8


async def steps(
    seat: Seat, prompt: Sequence[TokenId], answer: Sequence[TokenId]
) -> dict[int, float]:
    """Return the median step in seconds over the tokens read.

    answer: as many tokens as the largest step at least.
    """
    pick = coupled(Sampling(temperature=0.0), 0, len(prompt))
    found: dict[int, float] = {}
    await seat.step(list(prompt), pick)
    for count in READ:
        seconds = []
        for context in _contexts(prompt, answer, count):
            began_s = perf_counter()
            await seat.step(context, pick)
            seconds.append(perf_counter() - began_s)
        found[count] = median(seconds[1::2])
    return found


async def forever(seat: Seat, prompt: Sequence[TokenId], answer: Sequence[TokenId]) -> None:
    """Draft along the answer, over and over, until cancelled."""
    pick = coupled(Sampling(temperature=0.0), 0, len(prompt))
    for count in cycle(range(len(answer))):
        await seat.step([*prompt, *answer[:count]], pick)


def _contexts(
    prompt: Sequence[TokenId], answer: Sequence[TokenId], count: int
) -> Iterator[list[TokenId]]:
    """Yield the prompt, and `count` tokens more, in turn: the second is what is timed."""
    for _ in range(REPEATS):
        yield list(prompt)
        yield [*prompt, *answer[:count]]
