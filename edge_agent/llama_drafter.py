"""The draft model, in one thread of its own.

A LlamaDrafter owns that thread and a llama.cpp cache of some sequences. A job takes a Seat,
which is one sequence, or two if it has branches, for as long as it runs. When all are taken it
runs without drafts: the verifier fills in.

* Only the thread touches the cache. The event loop hands it Steps and awaits their Guess.
* A pass holds one segment of every waiting Step: a long prompt goes in chunks, and the other
  jobs' tokens go with them.
* Chain and branch go on from whichever of the two sequences holds more of their context. They
  share the cache, so that a copy costs nothing.
* A sequence keeps its tokens after its job: the next job with the same beginning starts there.
  Drafts need not be bit-identical, so any prefix will do.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from edge_agent.drafter import CannotDraft
from edge_agent.guessing import Pick
from models.prefixes import common, price
from models.segments import Limits, Segment
from speculation.guess import Guess
from speculation.laws import Logits
from speculation.messages import TokenId

BRANCH_TOKENS: Final = 256
"""Of the cache, for each seat: a chain that broke, and branches, beyond its context. The cache
is given out in steps of as many."""

CHUNK_TOKENS: Final = 64
"""Prompt tokens in one pass: what a step of another job waits for, at most."""


class Cache(Protocol):
    """What models.llama.Context does; used by one thread."""

    limits: Limits

    def decode(self, segments: Sequence[Segment]) -> None: ...
    def logits(self, index: int) -> Logits: ...
    def truncate(self, sequence: int, length: int) -> None: ...
    def copy(self, source: int, target: int) -> None: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class _Sequence:
    index: int
    tokens: list[TokenId] = field(default_factory=list)
    """What the cache holds. Changed by the thread only."""


@dataclass(slots=True)
class _Place:
    """A seat's part of the cache."""

    chain: _Sequence
    branch: _Sequence
    """The chain's, where there are no branches."""

    taken: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    sequence: _Sequence
    other: _Sequence
    """Of the same place."""

    context: Sequence[TokenId]
    position: int
    pick: Pick
    guess: asyncio.Future[Guess]


class LlamaDrafter:
    """A Drafter over llama.cpp. Owns the cache, and closes it.

    branches: a seat takes two of the cache's sequences, and they share their room.
    """

    def __init__(self, cache: Cache, *, branches: bool = False) -> None:
        self._cache = cache
        sequences = [_Sequence(i) for i in range(cache.limits.sequences)]
        each = 1 + branches
        pairs = zip(sequences[::each], sequences[branches::each], strict=True)
        self._places = [_Place(chain, branch) for chain, branch in pairs]
        self._asked: queue.SimpleQueue[_Step | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="drafter", daemon=True)
        self._thread.start()

    def take(self, prompt: Sequence[TokenId]) -> LlamaSeat | None:
        free = [place for place in self._places if not place.taken]
        if not free or len(prompt) >= self._cache.limits.context_tokens:
            return None
        best = min(free, key=lambda place: price(place.chain.tokens, list(prompt)))
        best.taken = True
        return LlamaSeat(best, len(prompt), self._asked, self._cache.limits.context_tokens)

    def close(self) -> None:
        self._asked.put(None)
        self._thread.join()
        self._cache.close()

    # --- in the thread

    def _run(self) -> None:
        waiting: dict[int, _Step] = {}
        while self._admit(waiting):
            try:
                self._pass(waiting)
            except Exception as error:  # whatever it was, it must reach those who wait
                self._fail(waiting, error)

    def _admit(self, waiting: dict[int, _Step]) -> bool:
        """Take in what was asked, waiting for it if there is nothing to do. False: the end."""
        while not waiting or not self._asked.empty():
            step = self._asked.get()
            if step is None:
                for left in waiting.values():
                    _settle(left, None)
                return False
            waiting[step.sequence.index] = step
        return True

    def _pass(self, waiting: dict[int, _Step]) -> None:
        """Decode one segment of every waiting step; answer those that are complete."""
        for step in [step for step in waiting.values() if step.guess.cancelled()]:
            del waiting[step.sequence.index]
        segments = self._segments(list(waiting.values()))
        if not segments:
            return
        self._cache.decode(segments)
        complete = 0
        for segment in segments:
            step = waiting[segment.sequence]
            step.sequence.tokens.extend(segment.tokens)
            if segment.logits == "last":
                del waiting[segment.sequence]
                _settle(step, step.pick(self._cache.logits(complete), step.position))
                complete += 1

    def _segments(self, steps: Sequence[_Step]) -> list[Segment]:
        room = self._cache.limits.batch_tokens
        segments = []
        for place, step in enumerate(steps):
            self._rewind(step)
            start = len(step.sequence.tokens)
            count = min(CHUNK_TOKENS, len(step.context) - start, room - len(steps) + place + 1)
            last = start + count == len(step.context)
            tokens = step.context[start : start + count]
            segments.append(
                Segment(step.sequence.index, start, tokens, "last" if last else "none")
            )
            room -= count
        return segments

    def _rewind(self, step: _Step) -> None:
        """Have the sequence hold what is known of the context, less its last token."""
        sequence, other = step.sequence, step.other
        kept = common(sequence.tokens, step.context)
        if other is not sequence:
            known = common(other.tokens, step.context)
            if known > kept:
                self._cache.copy(other.index, sequence.index)
                sequence.tokens[:] = other.tokens
                kept = known
            elif known < len(step.context) - step.position:
                self._cut(other, 0)  # of another prompt: it would only take room
        self._cut(sequence, min(kept, len(step.context) - 1))

    def _cut(self, sequence: _Sequence, length: int) -> None:
        if length < len(sequence.tokens):
            self._cache.truncate(sequence.index, length)
            del sequence.tokens[length:]

    def _fail(self, waiting: dict[int, _Step], error: Exception) -> None:
        """Tell everyone in the pass, and forget what the cache holds of them."""
        for step in waiting.values():
            for sequence in (step.sequence, step.other):
                self._cache.truncate(sequence.index, 0)
                sequence.tokens.clear()
            failure = CannotDraft(f"{type(error).__name__}: {error}")
            failure.__cause__ = error
            _settle(step, failure)
        waiting.clear()


class LlamaSeat:
    def __init__(
        self,
        place: _Place,
        prompt_tokens: int,
        asked: queue.SimpleQueue[_Step | None],
        context_tokens: int,
    ) -> None:
        self.context_tokens = context_tokens
        self._place = place
        self._prompt_tokens = prompt_tokens
        self._asked = asked
        self._left = False

    async def step(
        self, context: Sequence[TokenId], pick: Pick, *, branch: bool = False
    ) -> Guess:
        guess: asyncio.Future[Guess] = asyncio.get_running_loop().create_future()
        position = len(context) - self._prompt_tokens
        own, other = self._place.chain, self._place.branch
        if branch:
            own, other = other, own
        self._asked.put(_Step(own, other, context, position, pick, guess))
        return await guess

    def leave(self) -> None:
        if not self._left:
            self._left = True
            self._place.taken = False


def _settle(step: _Step, result: Guess | Exception | None) -> None:
    """Settle a step's future, from the thread. None cancels it."""

    def settle() -> None:
        if isinstance(result, Guess):
            step.guess.set_result(result)
        elif result is not None:
            step.guess.set_exception(result)
        else:
            step.guess.cancel()

    try:
        step.guess.get_loop().call_soon_threadsafe(
            lambda: None if step.guess.done() else settle()
        )
    except RuntimeError:  # the loop has ended, and with it whoever waited
        return
