"""Who goes when: passes over all sessions that should start now, and prompts read in between.

One turn = one pass, if any session should start, and one piece of one prompt, if any is unread:
so a long prompt never stops the others for longer than a piece takes. A held session delays
nobody: when another starts, it goes along with what it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from math import inf
from typing import Protocol, TypeVar

import structlog

from speculation.protocol.messages import TokenId
from speculation.verifying.pass_policy import share_rows, starters
from speculation.verifying.row_allocation import PassLatency
from verifier.llama_target.judging import Outcome, Part
from verifier.llama_target.slot import Slot
from verifier.metrics import PassMetrics
from verifier.target import TargetFailed

T = TypeVar("T")
Clock = Callable[[], float]
"""Seconds, monotonic."""


class Passes(Protocol):
    """What the scheduler needs of the Engine: both block, and run in its thread."""

    def prefill(self, sequence: int, start: int, tokens: Sequence[TokenId]) -> None: ...

    def run(self, parts: Sequence[Part]) -> list[Outcome]: ...


class Scheduler:
    def __init__(
        self,
        engine: Passes,
        thread: Executor,
        metrics: PassMetrics,
        *,
        max_rows: int,
        prefill_rows: int,
        clock: Clock,
        times: PassLatency | None = None,
    ) -> None:
        """times: what is known of passes already."""
        self.slots: list[Slot] = []
        """In the order of their arrival: prompts are read in this order."""

        self._engine = engine
        self._thread = thread
        self._metrics = metrics
        self._max_rows = max_rows
        self._prefill_rows = prefill_rows
        self._clock = clock
        self._times = times or PassLatency()
        self._news = asyncio.Event()
        self._log = structlog.get_logger("verifier")

    def add(self, slot: Slot) -> None:
        """Let a session take part: it has its place in the KV."""
        self.slots.append(slot)
        self.wake()

    def remove(self, slot: Slot) -> None:
        """End a session's part in everything. A pass that is running drops what it says."""
        slot.closed = True
        self.slots.remove(slot)
        self.wake()

    def wake(self) -> None:
        """Something changed: decide again."""
        self._news.set()

    async def run(self) -> None:
        """Take turns until cancelled."""
        while True:
            self._news.clear()
            due, wait_s = self._due(self._clock())
            if due:
                await self._pass(due)
            unread = next((slot for slot in self.slots if slot.unread), None)
            if unread:
                await self._prefill(unread)
            elif not due:
                await self._sleep(wait_s)

    def _due(self, now: float) -> tuple[list[Slot], float]:
        """Return the sessions whose pass should start now, and when to ask again."""
        holds_s = [slot.hold_s(now, self._times) for slot in self.slots]
        for slot, hold_s in zip(self.slots, holds_s, strict=True):
            if 0.0 < hold_s < inf and slot.held_since is None:
                slot.held_since = now
        return [self.slots[i] for i in starters(holds_s)], min(holds_s, default=inf)

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds if seconds < inf else None):
                await self._news.wait()
        except TimeoutError:
            return

    async def _pass(self, due: Sequence[Slot]) -> None:
        began = self._clock()
        counts = share_rows(
            [slot.machine for slot in due],
            self._times,
            most=self._max_rows - len(due),  # one more each, with fill `never`
        )
        for slot in due:
            if slot.held_since is not None:
                self._metrics.held(began - slot.held_since)
        parts = [slot.begin(count) for slot, count in zip(due, counts, strict=True)]
        outcomes = await self._call(due, self._engine.run, parts)
        if outcomes is None:
            return
        now = self._clock()
        self._account(sum(len(part.tokens) for part in parts), now - began)
        for slot, part, outcome in zip(due, parts, outcomes, strict=True):
            self._metrics.judged(len(part.judged.draft), outcome.judgement.accepted)
            if not slot.closed:
                slot.take(outcome, began=began, now=now)

    async def _prefill(self, slot: Slot) -> None:
        start = slot.prefilled
        count = min(self._prefill_rows, slot.unread)
        tokens = slot.request.prompt[start : start + count]
        await self._call([slot], self._engine.prefill, slot.sequence, start, tokens)
        slot.prefilled += count

    async def _call(
        self, slots: Sequence[Slot], work: Callable[..., T], *arguments: object
    ) -> T | None:
        """Run `work` in the thread; if it fails, its sessions fail, and None is returned."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, work, *arguments)
        except Exception as error:  # whatever it is, these sessions are lost and others are not
            self._log.error("pass failed", sessions=len(slots), exc_info=error)
            for slot in slots:
                slot.fail(TargetFailed(f"the target failed: {error}"))
            return None

    def _account(self, rows: int, seconds: float) -> None:
        self._times.saw(rows, seconds)
        self._metrics.passed(rows, seconds)
