"""A KV cache that rejects gaps, as llama.cpp does, over a model each of whose tokens depends on
all before it, and ways to ask a drafter for steps."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from edge_agent.draft.drafter import DraftSlot
from edge_agent.draft.llama import LlamaDrafter
from edge_agent.draft.slot import LlamaSlot
from local_models.llama_cpp.segments import ContextLimits, Segment, check
from speculation import coupled
from speculation.distributions import Logits
from speculation.messages import Sampling
from tests.virtual_time import Gate

V = 100


def truth(context: Sequence[int]) -> int:
    """The fake model's token after a context: it depends on every token of the context."""
    total = 0
    for token in context:
        total = (total * 31 + token) % 9973
    return total % V


class FakeCache:
    def __init__(self, slots: int = 4, context_tokens: int = 300) -> None:
        sequences = slots + 1
        self.limits = ContextLimits(
            sequences, context_tokens, batch_tokens=128, vocabulary_size=V, logits_rows=64
        )
        self.passes: list[list[Segment]] = []
        self.gate = Gate()
        self.broken = False
        self.closed = False
        self._held: list[list[int]] = [[] for _ in range(sequences)]
        self._rows: list[int] = []

    def decode(self, segments: Sequence[Segment]) -> None:
        self.gate.wait()
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

    def truncate(self, sequence: int, length: int) -> int:
        del self._held[sequence][length:]
        return len(self._held[sequence])

    def copy(self, source: int, target: int) -> None:
        self._held[target] = list(self._held[source])

    def close(self) -> None:
        self.closed = True

    @property
    def held(self) -> int:
        """Tokens of all sequences."""
        return sum(map(len, self._held))

    @property
    def rows(self) -> int:
        return sum(len(segment.tokens) for segments in self.passes for segment in segments)


SAMPLER = coupled.sampler(Sampling(temperature=0.0), 0, 3)


def taken(
    drafter: LlamaDrafter, prompt: Sequence[int], owner: object = None, *, whole: bool = False
) -> LlamaSlot:
    """Take a slot, of which one must be free."""
    slot = drafter.take(prompt, owner, whole=whole)
    assert slot is not None
    return slot


async def turn(drafter: LlamaDrafter, prompt: Sequence[int]) -> int:
    """Return what is drafted after a prompt by a session that ends then."""
    slot = taken(drafter, prompt)
    token = await draft_after(slot, prompt)
    slot.leave()
    return token


async def rest_is_read(slot: LlamaSlot, within_s: float = 5.0) -> None:
    """Wait until the rest of the prompt was read beside the steps."""
    async with asyncio.timeout(within_s):
        while slot.slot.rest:  # noqa: ASYNC110 - a thread reads it
            await asyncio.sleep(0.01)


async def draft_after(slot: DraftSlot | None, context: Sequence[int]) -> int:
    (token,) = await drafts_after(slot, context)
    return token


async def drafts_after(
    slot: DraftSlot | None, context: Sequence[int], ahead: Sequence[int] = ()
) -> list[int]:
    assert slot is not None
    async with asyncio.timeout(5):
        drafts = await slot.step(list(context), lambda _: SAMPLER, ahead=ahead)
        return [draft.token for draft in drafts]
