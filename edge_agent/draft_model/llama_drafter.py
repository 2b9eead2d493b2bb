"""The draft model, in one thread of its own.

A LlamaDrafter owns that thread and a llama.cpp cache of some sequences. A job takes a Seat,
which is one sequence, for as long as it runs. When all are taken it
runs without drafts: the verifier fills in.

* Only the thread touches the cache. The event loop hands it Steps and awaits their Guesses.
* A pass holds one segment of every waiting Step: a long prompt goes in chunks, and the other
  jobs' tokens go with them.
* A sequence keeps its tokens after its job: the next job with the same beginning starts there.
  Drafts need not be bit-identical, so any prefix will do.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import Final, Protocol

from edge_agent.draft_model.drafter import CannotDraft, guessed_along
from edge_agent.draft_model.slots import CacheSequence, LlamaSlot, Step
from models.kv_reuse import common_prefix, reuse_cost
from models.segments import Limits, Segment
from speculation.protocol.messages import TokenId
from speculation.sampling.distributions import Logits
from speculation.sampling.draft_token import DraftToken

CHUNK_TOKENS: Final = 64
"""Prompt tokens in one pass: what a step of another job waits for, at most."""


class Cache(Protocol):
    """What models.llama.Context does; used by one thread."""

    limits: Limits

    def decode(self, segments: Sequence[Segment]) -> None: ...
    def logits(self, index: int) -> Logits: ...
    def truncate(self, sequence: int, length: int) -> None: ...
    def close(self) -> None: ...


class LlamaDrafter:
    """A Drafter over llama.cpp. Owns the cache, and closes it."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._places = [CacheSequence(i) for i in range(cache.limits.sequences)]
        self._asked: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="drafter", daemon=True)
        self._thread.start()

    def take(self, prompt: Sequence[TokenId]) -> LlamaSlot | None:
        free = [place for place in self._places if not place.taken]
        if not free or len(prompt) >= self._cache.limits.context_tokens:
            return None
        best = min(free, key=lambda place: reuse_cost(place.tokens, list(prompt)))
        best.taken = True
        return LlamaSlot(best, len(prompt), self._asked, self._cache.limits.context_tokens)

    def close(self) -> None:
        self._asked.put(None)
        self._thread.join()
        self._cache.close()

    # --- in the thread

    def _run(self) -> None:
        waiting: dict[int, Step] = {}
        while self._admit(waiting):
            try:
                self._pass(waiting)
            except Exception as error:  # whatever it was, it must reach those who wait
                self._fail(waiting, error)

    def _admit(self, waiting: dict[int, Step]) -> bool:
        """Take in what was asked, waiting for it if there is nothing to do. False: the end."""
        while not waiting or not self._asked.empty():
            step = self._asked.get()
            if step is None:
                for left in waiting.values():
                    left.settle(None)
                return False
            waiting[step.sequence.index] = step
        return True

    def _pass(self, waiting: dict[int, Step]) -> None:
        """Decode one segment of every waiting step; answer those that are complete."""
        for step in [step for step in waiting.values() if step.guesses.cancelled()]:
            del waiting[step.sequence.index]
        segments = self._segments(list(waiting.values()))
        if not segments:
            return
        self._cache.decode(segments)
        row = 0
        for segment in segments:
            step = waiting[segment.sequence]
            step.sequence.tokens.extend(segment.tokens)
            if segment.logits:
                del waiting[segment.sequence]
                step.settle(self._guesses(step, row, segment.logits))
                row += segment.logits

    def _guesses(self, step: Step, row: int, count: int) -> list[DraftToken]:
        """Return what a step says, whose `count` rows of logits begin with `row`."""
        return guessed_along(
            lambda n: step.pick(self._cache.logits(row + n), step.position + n),
            step.ahead[: count - 1],
        )

    def _segments(self, steps: Sequence[Step]) -> list[Segment]:
        room = self._cache.limits.batch_tokens
        segments = []
        for place, step in enumerate(steps):
            self._rewind(step)
            start = len(step.sequence.tokens)
            most = min(CHUNK_TOKENS, room - len(steps) + place + 1)
            tokens = list(step.context[start : start + most])
            wanted = 0
            if start + len(tokens) == len(step.context):
                ahead = step.ahead[: most - len(tokens)]
                tokens += ahead
                wanted = 1 + len(ahead)
            segments.append(Segment(step.sequence.index, start, tokens, wanted))
            room -= len(tokens)
        return segments

    def _rewind(self, step: Step) -> None:
        """Have the sequence hold what is known of the context, less its last token."""
        sequence = step.sequence
        length = min(common_prefix(sequence.tokens, step.context), len(step.context) - 1)
        if length < len(sequence.tokens):
            self._cache.truncate(sequence.index, length)
            del sequence.tokens[length:]

    def _fail(self, waiting: dict[int, Step], error: Exception) -> None:
        """Tell everyone in the pass, and forget what the cache holds of them."""
        for step in waiting.values():
            self._cache.truncate(step.sequence.index, 0)
            step.sequence.tokens.clear()
            failure = CannotDraft(f"{type(error).__name__}: {error}")
            failure.__cause__ = error
            step.settle(failure)
        waiting.clear()
