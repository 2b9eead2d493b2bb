"""The draft model on llama.cpp, which runs in one thread of its own.

A session takes a slot, which is one sequence of the KV cache, for as long as it runs. When all
slots are taken, further sessions run without drafts, by the verifier's fill-in passes alone.

* Only the thread touches the cache. The event loop sends it StepRequests and awaits the drafts.
* A pass has one segment of every waiting request. A long prompt is split into chunks, so that
  steps of other sessions share its passes instead of waiting for all of it.
* A pass that does not end blocks the thread, but no session: its steps fail after a while.
* A part of a long prompt is read first, the rest when steps leave time (slot.py).
* A slot keeps its tokens after its session: the next session with the same beginning starts
  there. Drafts need not be bit-identical, so any common prefix of the same owner is reused;
  other owners could tell by the timing what was asked (local_models.llama_cpp.prefix).
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import structlog

from edge_agent.draft.drafter import CannotDraft, drafts_while_matching
from edge_agent.draft.reading_on import ReadingOn
from edge_agent.draft.slot import KvSlot, LlamaSlot, ReadingPolicy, StepRequest
from local_models.llama_cpp.model import Context
from local_models.llama_cpp.segments import Segment
from speculation.model_facts import TokenId

CHUNK_TOKENS: Final = 64
"""A pass has at most this many tokens of one prompt, so that other sessions' steps are fast."""

LOGITS_ROWS: Final = 64
"""So many rows of a pass have logits: one session's chunk that reads ahead, or shares of it."""

PASS_TIMEOUT_S: Final = 30.0
"""The steps of a pass of the draft model fail after this many seconds. A full pass of 256 rows
takes 3 s with a draft model of 0.5B on one core; and sessions lose only their drafts."""

GIVES_WAY_S: Final = 10.0
"""An answer whose draft model made no step for so long gives its slot to one that has none: its
reader is slow, or it pauses."""

CHECK_S: Final = 1.0
CLOSE_S: Final = 3.0
"""An edge that ends waits this many seconds for the running pass of its draft model."""


class LlamaDrafter:
    """A Drafter over llama.cpp. It owns the cache, and closes it. share_prefixes: True if all
    owners count as one."""

    def __init__(self, cache: Context, *, share_prefixes: bool = False) -> None:
        self.read_tokens = 0  # only the thread changes it
        self._cache = cache
        self._share_prefixes = share_prefixes
        self._reading = ReadingPolicy(cache.limits.context_tokens)
        self._taken: dict[KvSlot, LlamaSlot] = {}  # the latest of each slot
        *self._slots, spare = map(KvSlot, range(cache.limits.sequences))
        self._reading_on = ReadingOn(spare, self._reading, CHUNK_TOKENS)
        self._requests: queue.SimpleQueue[StepRequest | None] = queue.SimpleQueue()
        self._waiting: dict[KvSlot, StepRequest] = {}
        """One request per slot. Only the thread changes it."""

        self._began: float | None = None
        """The start of the running pass; None between passes. Only the thread sets it."""

        self._thread = threading.Thread(target=self._run, name="drafter", daemon=True)
        self._thread.start()

    def take(
        self, prompt: Sequence[TokenId], owner: object = None, *, whole: bool = False
    ) -> LlamaSlot | None:
        if not prompt:  # a pass reads at least one token of each context
            return None
        owner = None if self._share_prefixes else owner
        if self.is_stuck or (whole and len(prompt) >= self._reading.room):
            return None
        if not (free := self._free()):
            return None
        own = list(prompt)
        slot = min(free, key=lambda slot: slot.cost(own, owner, self._reading))
        latest = max(each.taken_at for each in self._slots)
        slot.taken, slot.taken_at = True, latest + 1
        self._taken[slot] = LlamaSlot(slot, len(own), self._requests, owner, whole)
        return self._taken[slot]

    def _free(self) -> list[KvSlot]:
        """Return the slots that are free. If none is, the idlest answer gives way, unless it
        has not been idle for long or has no other model."""
        if free := [slot for slot in self._slots if not slot.taken]:
            return free
        idle = [each for each in self._taken.values() if not each.whole]
        idlest = max(idle, key=lambda each: each.idle_s, default=None)
        if idlest is None or idlest.idle_s < GIVES_WAY_S:
            return []
        idlest.leave()
        return [idlest.slot]

    is_late = False

    async def wake(self) -> None:
        """Return: the draft model is here."""

    @property
    def is_idle(self) -> bool:
        return not any(slot.taken for slot in self._slots)

    @property
    def is_stuck(self) -> bool:
        began = self._began
        return not self._thread.is_alive() or (
            began is not None and time.monotonic() - began > PASS_TIMEOUT_S
        )

    async def watch(self) -> None:
        log, is_stuck = structlog.get_logger("edge_agent"), False
        while True:
            await asyncio.sleep(CHECK_S)
            before, is_stuck = is_stuck, self.is_stuck
            if is_stuck:
                self._give_up()
            if is_stuck and not before:
                log.error("the draft model is stuck", pass_took_s=PASS_TIMEOUT_S)
            if before and not is_stuck:
                log.info("the draft model goes on")

    def _give_up(self) -> None:
        """Fail the steps that wait for the thread."""
        waiting = list(self._waiting.values())
        with suppress(queue.Empty):
            while (request := self._requests.get_nowait()) is not None:
                waiting.append(request)
        for request in waiting:
            request.fail(CannotDraft(f"a pass takes more than {PASS_TIMEOUT_S:g} s"))

    def close(self) -> bool:
        self._requests.put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            return False
        self._cache.close()
        return True

    # The methods below run in the thread.

    def _run(self) -> None:
        waiting = self._waiting
        while True:
            slot = None
            try:
                if not self._admit(waiting):
                    return
                self._began = time.monotonic()
                slot = self._reading_on.next_slot(self._slots, step_waits=bool(waiting))
                if slot is not None:
                    self._read_on(slot)
                else:
                    self._pass(waiting)
            except Exception as error:  # any error must reach the sessions that wait for it
                self._fail(waiting if slot is None else {}, error)
            self._began = None

    def _admit(self, waiting: dict[KvSlot, StepRequest]) -> bool:
        """Take in new requests. Wait for one if there is nothing to do, and only briefly if
        there is a rest of a prompt to read. Return False when the drafter closes."""
        while not (waiting and self._requests.empty()):
            try:
                request = self._requests.get(timeout=self._reading_on.wait_s(self._slots))
            except queue.Empty:
                return True
            if request is None:
                for left in waiting.values():
                    left.drafts.cancel()
                return False
            waiting[request.session.slot] = request
        return True

    def _pass(self, waiting: dict[KvSlot, StepRequest]) -> None:
        """Decode one segment of each request; answer those whose context is read completely."""
        for slot in [slot for slot, each in waiting.items() if each.drafts.done()]:
            del waiting[slot]
        if not waiting:
            return
        segments = self._segments(requests := list(waiting.values()))
        self._decode(segments)
        self._reading_on.pass_ended(ended=all(segment.logits for segment in segments))
        row = 0
        for request, segment in zip(requests, segments, strict=True):
            slot = request.session.slot
            slot.tokens.extend(segment.tokens)
            if segment.logits:
                del waiting[slot]
                self._answer(request, row, segment.logits)
                row += segment.logits

    def _decode(self, segments: Sequence[Segment]) -> None:
        began = time.monotonic()
        self._cache.decode(segments)
        took_s = time.monotonic() - began
        self._reading.observe(sum(len(segment.tokens) for segment in segments), took_s)

    def _answer(self, request: StepRequest, row: int, rows: int) -> None:
        """Answer a request from its `rows` rows of logits from `row` on. An error of its
        sampler is no other session's."""
        try:
            drafts = drafts_while_matching(
                lambda n: request.sampler(self._cache.logits(row + n), request.position + n),
                request.ahead[: rows - 1],
            )
        except Exception as error:  # a sampler is the session's own
            request.fail(_failure(error))
        else:
            request.succeed(drafts)

    def _segments(self, requests: Sequence[StepRequest]) -> list[Segment]:
        """Return one segment of each request, with at least one token for each."""
        room, logits = self._cache.limits.batch_tokens, self._cache.limits.logits_rows
        segments = []
        for place, request in enumerate(requests):
            slot, seen = request.session.slot, request.seen(self._reading, self._cache)
            slot.rewind(seen[:-1], self._cache)  # the draft comes from the last token's row
            start = len(slot.tokens)
            most = min(CHUNK_TOKENS, room - len(requests) + place + 1)
            tokens, rows = seen[start : start + most], 0
            unread = len(seen) - request.position - start
            self.read_tokens += max(0, min(len(tokens), unread))
            if start + len(tokens) == len(seen):
                free = min(self._reading.room - len(seen), logits - len(requests) + place)
                ahead = request.ahead[: max(0, min(free, most - len(tokens)))]
                tokens += ahead
                rows = 1 + len(ahead)
                logits -= rows
            segments.append(Segment(slot.index, start, tokens, rows))
            room -= len(tokens)
        return segments

    def _read_on(self, slot: KvSlot) -> None:
        """Read a chunk of the rest of a slot's context."""
        step_waits = bool(self._waiting)
        segment = self._reading_on.begin_chunk(slot, self._cache, step_waits=step_waits)
        if segment.tokens:
            self._decode([segment])
            self.read_tokens += len(segment.tokens)
        self._reading_on.chunk_was_read(slot, segment.tokens)

    def _fail(self, waiting: dict[KvSlot, StepRequest], error: Exception) -> None:
        """Fail all waiting requests, clear their slots in the cache, and drop the rests of all
        prompts."""
        slots = [request.session.slot for request in waiting.values()]
        for slot in (self._reading_on.spare, *slots):
            self._cache.truncate(slot.index, 0)
            slot.tokens.clear()
        for slot in self._slots:
            slot.rest = ()
        for request in waiting.values():
            request.fail(_failure(error))
        waiting.clear()


def _failure(error: Exception) -> CannotDraft:
    failure = CannotDraft(f"{type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
