"""A cache that refuses gaps, as llama.cpp does, a model whose words rest on all before, and
what a drafter over them is asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np

from edge_agent.draft_model.drafter import Seat
from models.segments import Limits, Segment, check
from speculation.protocol.messages import Sampling
from speculation.sampling import draft_sampler as guessing
from speculation.sampling.distributions import Logits

V = 100


def truth(context: Sequence[int]) -> int:
    """What the fake model says after a context: it depends on every token of it."""
    total = 0
    for token in context:
        total = (total * 31 + token) % 9973
    return total % V


class FakeCache:
    def __init__(self, sequences: int = 4, context_tokens: int = 300) -> None:
        self.limits = Limits(sequences, context_tokens, batch_tokens=128, vocabulary_size=V)
        self.passes: list[list[Segment]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.broken = False
        self.closed = False
        self._held: list[list[int]] = [[] for _ in range(sequences)]
        self._rows: list[int] = []

    def decode(self, segments: Sequence[Segment]) -> None:
        self.gate.wait(5)
        check(segments, self.limits, lambda sequence: len(self._held[sequence]))
        if self.broken:
            self.broken = False
            raise OSError("out of luck")
        self.passes.append(list(segments))
        self._rows = []
        for segment in segments:
            held = self._held[segment.sequence]
            held.extend(segment.tokens)
            wanted = len(segment.tokens) if segment.logits is None else segment.logits
            self._rows += [truth(held[: len(held) - n]) for n in reversed(range(wanted))]

    def logits(self, index: int) -> Logits:
        row = np.zeros(V, np.float32)
        row[self._rows[index]] = 50.0
        return row

    def truncate(self, sequence: int, length: int) -> None:
        del self._held[sequence][length:]

    def close(self) -> None:
        self.closed = True

    @property
    def held(self) -> int:
        """Tokens of all sequences."""
        return sum(map(len, self._held))

    @property
    def rows(self) -> int:
        return sum(len(segment.tokens) for segments in self.passes for segment in segments)


PICK = guessing.coupled(Sampling(temperature=0.0), 0, 3)


async def guess_after(seat: Seat | None, context: Sequence[int]) -> int:
    (token,) = await guesses_after(seat, context)
    return token


async def guesses_after(
    seat: Seat | None,
    context: Sequence[int],
    ahead: Sequence[int] = (),
) -> list[int]:
    assert seat is not None
    async with asyncio.timeout(5):
        guesses = await seat.step(list(context), PICK, ahead=ahead)
        return [guess.token for guess in guesses]
