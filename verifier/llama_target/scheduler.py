"""Drives the VerifyMachine with llama.cpp: runs the offered passes, and reads prompts between.

A turn is one pass, if the machine offers one, then one piece of one prompt, if any is unread:
so a long prompt stops the other sessions for no longer than a piece takes. Pieces alternate
between the oldest prompt and the one with the least unread: a short prompt does not wait for
long ones, and the long ones get at least half of the time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Final, TypeVar

import structlog

from local_models.errors import GrammarFailed
from speculation.verify_machine import Offer, PassRecord, VerifyMachine
from verifier.llama_target.mtp_head import MtpHead
from verifier.llama_target.pass_runner import PassRunner
from verifier.llama_target.pieces import Pieces
from verifier.llama_target.slot import Slot
from verifier.metrics import VerifierMetrics
from verifier.settings import LlamaSettings
from verifier.target import TargetFailed

T = TypeVar("T")

HEAD_TOKENS: Final = 4
"""A head drafts at most this many tokens for a pass: it was trained to predict one."""


@dataclass(eq=False)
class Scheduler:
    """Takes turns for all sessions. slots: the sessions in order of arrival; one that waits for
    a sequence of the KV cache does not take part yet. settings: max_rows bounds one pass, and
    prefill_rows one piece of a prompt."""

    engine: PassRunner
    machine: VerifyMachine
    thread: Executor
    metrics: VerifierMetrics
    settings: LlamaSettings
    slots: Mapping[str, Slot]

    def __post_init__(self) -> None:
        self._pieces = Pieces(self.settings.prefill_rows)
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Ask the machine again, because something changed."""
        self._changed.set()

    def start(self, over: Callable[[asyncio.Task[None]], object]) -> None:
        """Take turns in a task. over: called when it has ended, by `stop` or by a bug."""
        self._running = asyncio.create_task(self.run())
        self._running.add_done_callback(over)

    async def stop(self) -> None:
        """Cancel the task, and wait until the running pass has ended."""
        self._running.cancel()
        await asyncio.wait([self._running])

    async def run(self) -> None:
        """Take turns until cancelled."""
        while True:
            self._changed.clear()
            offer = self._offer(time.monotonic())
            if offer.start:
                await self._pass(offer)
            if unread := [slot for slot in self.slots.values() if slot.unread]:
                await self._prefill(unread[self._pieces.choose([s.unread for s in unread])])
            elif not offer.start:
                with suppress(TimeoutError):
                    async with asyncio.timeout(offer.wait_s if offer.wait_s < inf else None):
                        await self._changed.wait()

    def _offer(self, now: float) -> Offer:
        ready = [slot.name for slot in self.slots.values() if slot.ready]
        offer = self.machine.offer(ready, now, rows=self.settings.max_rows)
        for name in offer.waiting_for_drafts:
            slot = self.slots[name]
            slot.waits_since = slot.waits_since or now
        return offer

    async def _pass(self, offer: Offer) -> None:
        slots = {name: self.slots[name] for name in offer.start}
        plan = self.machine.begin(
            {n: len(d) for n, d in offer.start.items()}, time.monotonic(), offer.heads
        )
        for slot in slots.values():
            if slot.waits_since is not None:
                self.metrics.draft_wait_s.observe(plan.started - slot.waits_since)
                slot.waits_since = None
        parts = [slots[name].part(judged) for name, judged in plan.passes.items()]
        outcome = await self._call(list(slots.values()), self.engine.run, parts)
        if outcome is None:
            return
        outcomes, extra_judging_s = outcome
        now, rows = time.monotonic(), sum(len(part.tokens) for part in parts)
        self.metrics.passed(rows, now - plan.started)
        verdicts = {}
        for name, verdict, part in zip(plan.passes, outcomes, parts, strict=True):
            if isinstance(verdict, GrammarFailed):
                slots[name].fail(TargetFailed(str(verdict)))
                continue
            verdicts[name] = verdict
            self.metrics.judged(len(part.judged.draft), verdict.judgement.accepted)
        record = PassRecord(rows, extra_judging_s=extra_judging_s)
        down = self.machine.ran(plan, verdicts, now, record)
        for name, messages in down.items():
            slots[name].send(messages)
        if self.engine.head is not None:
            await self._draft(self.engine.head, slots)

    async def _draft(self, head: MtpHead, slots: Mapping[str, Slot]) -> None:
        """Let the head draft for the sessions of the last pass that it pays for."""
        now = time.monotonic()
        going = [n for n, slot in self.slots.items() if slots.get(n) is slot and slot.ready]
        names, count = self.machine.heads_to_draft(going, now, head.step_s, HEAD_TOKENS)
        if not count:
            return
        picks = {slots[name].sequence: slots[name].picking() for name in names}
        drafts = await self._call([slots[name] for name in names], head.draft, picks, count)
        for name in names:
            if drafts is not None and self.slots.get(name) is slots[name]:
                slots[name].proposed = drafts[slots[name].sequence]
                self.machine.proposed(name, count)

    async def _prefill(self, slot: Slot) -> None:
        began = time.monotonic()
        running = sum(each.ready for each in self.slots.values())
        pass_s = self.machine.latency.of(running) if running else 0.0
        count = min(self._pieces.rows(pass_s), slot.unread)
        logprobs = await self._call([slot], slot.reading(self.engine, count))
        self._pieces.observe(count, time.monotonic() - began)
        slot.decoded(count, logprobs or ())
        self.metrics.prefilled.inc(count)

    async def _call(
        self, slots: Sequence[Slot], work: Callable[..., T], *arguments: object
    ) -> T | None:
        """Run `work` in the thread. If it fails, fail the given sessions and return None."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self.thread, work, *arguments)
        except Exception as error:  # whatever it is, only these sessions are lost
            structlog.get_logger("verifier").error(
                "pass failed", sessions=len(slots), exc_info=error
            )
            for slot in slots:
                slot.fail(TargetFailed(f"the target failed: {error}"))
            return None
