"""Reads the rest of a prompt in a spare sequence of the KV cache, when steps leave time for it.

Steps come first: one that ends after the next Commit is stale. So the rest is read while no
step is asked for, in chunks that last about as long as none has been; and by turns with steps
where it will soon be read. When no session is left, the last one's prompt is read on for a
while: the next turn of its conversation begins with it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from picospec.edge_agent.draft_model.llama_slot import KvSlot, Reading
from picospec.models.llama_cpp.model import Context
from picospec.models.llama_cpp.segments import Segment

IDLE_S: Final = 0.02
"""Nothing is read on until no step was asked for this time, in seconds: the next one is often
asked for as soon as the last one has ended."""

CHUNK_S: Final = 0.2
"""A chunk takes no longer, in seconds, if it has more than LEAST_CHUNK tokens."""

LEAST_CHUNK: Final = 4
"""So many tokens take less than three times as long as one."""

SOON_S: Final = 2.0
"""A rest that takes no longer to read, in seconds, is read by turns with steps."""

AFTER_S: Final = 30.0
"""After the last session's last step it is read on for so long, in seconds: an agent runs its
tools meanwhile, and a person reads the answer. Longer, it would only warm the device."""


class ReadingOn:
    """The draft model's thread uses it. spare: the slot of the sequence. most: the tokens of a
    chunk."""

    def __init__(self, spare: KvSlot, reading: Reading, most: int) -> None:
        self.spare = spare
        self._reading = reading
        self._most = most
        self._stepped_at = 0.0
        self._is_due = False
        """The last pass was one of steps, which have got what they asked for."""

    def stepped(self, *, ended: bool) -> None:
        """Note a pass of steps. ended: it was the last one of each, and no part of a prompt
        that is read before a first draft token."""
        self._stepped_at, self._is_due = time.monotonic(), ended

    def patience_s(self, slots: Sequence[KvSlot]) -> float | None:
        """Return how long to wait for a step where none is asked for; None: for ever."""
        if self._unread(slots) is None:
            return None
        return max(0.0, IDLE_S - self._idle_s)

    def due(self, slots: Sequence[KvSlot], *, waited_for: bool) -> KvSlot | None:
        """Return the slot whose rest is read now, if any is. waited_for: by a step."""
        slot = self._unread(slots)
        if slot is None or not waited_for:
            return slot
        read = len(self.spare.tokens) if self.spare.session is slot.session else slot.view.first
        soon = len(slot.rest) - read <= self._reading.tokens_a_s * SOON_S
        return slot if self._is_due and soon else None

    def begin_chunk(self, slot: KvSlot, cache: Context, *, waited_for: bool) -> Segment:
        """Return what to read next of a slot's rest; it may have no tokens."""
        self.spare.session, self._is_due = slot.session, False
        self.spare.begin(slot.rest, slot, cache)
        time_s = IDLE_S if waited_for else min(self._idle_s, CHUNK_S)
        count = max(LEAST_CHUNK, min(self._most, int(self._reading.tokens_a_s * time_s)))
        start = len(self.spare.tokens)
        tokens = list(slot.rest[start : start + count])
        return Segment(self.spare.index, start, tokens, 0)

    def was_read(self, slot: KvSlot, tokens: Sequence[int]) -> None:
        """Note what was read. The last chunk gives all of it the place of the slot's."""
        self.spare.tokens += tokens
        if len(self.spare.tokens) == len(slot.rest):
            slot.take_from(self.spare)

    def _unread(self, slots: Sequence[KvSlot]) -> KvSlot | None:
        """Return the slot of the session that began last of those with a rest to read, of the
        sessions that run or, where none does, of those that ended lately."""
        running = [slot for slot in slots if slot.taken]
        if not running and self._idle_s > AFTER_S:
            return None
        unread = (slot for slot in running or slots if slot.rest)
        return max(unread, key=lambda slot: slot.taken_at, default=None)

    @property
    def _idle_s(self) -> float:
        return time.monotonic() - self._stepped_at
