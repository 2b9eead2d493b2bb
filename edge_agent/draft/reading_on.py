"""Reads the rest of a prompt in a spare sequence of the KV cache, when steps leave time for it.

Steps come first: a step that ends after the next Commit is stale. So the rest is read while
no step waits, in chunks that last about as long as the idle time so far; or in turns with
steps if it will soon be read. When no session is left, the last session's prompt is read on
for a while, because the next turn of its conversation begins with it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from edge_agent.draft.slot import KvSlot, ReadingPolicy
from local_models.llama_cpp.model import Context
from local_models.llama_cpp.segments import Segment

IDLE_S: Final = 0.02
"""Reading on begins after this many seconds without a step: the next step is often asked for as
soon as the last one has ended."""

CHUNK_S: Final = 0.2
"""A chunk of more than MIN_CHUNK_TOKENS tokens takes at most this many seconds."""

MIN_CHUNK_TOKENS: Final = 4
"""This many tokens take less than three times as long as one."""

SOON_S: Final = 2.0
"""A rest that takes at most this many seconds to read is read in turns with steps."""

AFTER_S: Final = 30.0
"""Reading on ends this many seconds after the last session's last step: meanwhile an agent runs
its tools, and a person reads the answer. Any longer would only warm the device."""


class ReadingOn:
    """Chooses what the draft model's thread reads on. spare: the slot of the spare sequence.
    most: the most tokens of a chunk."""

    def __init__(self, spare: KvSlot, reading: ReadingPolicy, most: int) -> None:
        self.spare = spare
        self._reading = reading
        self._most = most
        self._pass_ended_at = 0.0
        self._is_due = False
        """The last pass was one of steps, each of which got its result."""

    def pass_ended(self, *, ended: bool) -> None:
        """Note a pass of steps. ended: True if each step got its result, and no prompt is still
        being read before a first draft token."""
        self._pass_ended_at, self._is_due = time.monotonic(), ended

    def wait_s(self, slots: Sequence[KvSlot]) -> float | None:
        """Return how long to wait for a step while none waits; None means for ever."""
        if self._unread(slots) is None:
            return None
        return max(0.0, IDLE_S - self._idle_s)

    def next_slot(self, slots: Sequence[KvSlot], *, step_waits: bool) -> KvSlot | None:
        """Return the slot whose rest to read now, if any. step_waits: True if a step waits."""
        slot = self._unread(slots)
        if slot is None or not step_waits:
            return slot
        read = len(self.spare.tokens) if self.spare.session is slot.session else slot.view.first
        soon = len(slot.rest) - read <= self._reading.tokens_per_s * SOON_S
        return slot if self._is_due and soon else None

    def begin_chunk(self, slot: KvSlot, cache: Context, *, step_waits: bool) -> Segment:
        """Return the next segment of a slot's rest; it may have no tokens."""
        self.spare.session, self._is_due = slot.session, False
        self.spare.begin(slot.rest, slot, cache)
        time_s = IDLE_S if step_waits else min(self._idle_s, CHUNK_S)
        count = max(MIN_CHUNK_TOKENS, min(self._most, int(self._reading.tokens_per_s * time_s)))
        start = len(self.spare.tokens)
        tokens = list(slot.rest[start : start + count])
        return Segment(self.spare.index, start, tokens, 0)

    def chunk_was_read(self, slot: KvSlot, tokens: Sequence[int]) -> None:
        """Note what was read. After the last chunk the spare sequence replaces the slot's."""
        self.spare.tokens += tokens
        if len(self.spare.tokens) == len(slot.rest):
            slot.swap_with(self.spare)

    def _unread(self, slots: Sequence[KvSlot]) -> KvSlot | None:
        """Return the slot with a rest to read whose session began last: of the running sessions
        or, if there are none, of those that ended recently."""
        running = [slot for slot in slots if slot.taken]
        if not running and self._idle_s > AFTER_S:
            return None
        unread = (slot for slot in running or slots if slot.rest)
        return max(unread, key=lambda slot: slot.taken_at, default=None)

    @property
    def _idle_s(self) -> float:
        return time.monotonic() - self._pass_ended_at
