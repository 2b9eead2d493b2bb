"""Who goes when: the scheduler over an engine that only notes what it is asked."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from gateway.metrics import Metrics
from speculation.protocol.messages import Commit, Draft, Finish, Limits
from speculation.sampling.judging import Judgement
from tests.verifier.fake_target import opening
from verifier.llama_target.judging import Outcome, Part
from verifier.llama_target.scheduler import Scheduler
from verifier.llama_target.slot import Slot
from verifier.metrics import PassMetrics
from verifier.target import TargetFailed

V = 64
SAYS = 20
"""The token this engine says, always."""


class NotingEngine:
    """Accepts drafts that are SAYS; passes take pass_s."""

    def __init__(self, pass_s: float = 0.002) -> None:
        self.calls: list[list[tuple[int, int]] | tuple[int, int, int]] = []
        """A pass: (sequence, drafts) of each part. A prompt's piece: sequence, start, rows."""

        self.fails_at: int | None = None
        self._pass_s = pass_s

    def prefill(self, sequence: int, start: int, tokens: Sequence[int]) -> None:
        self.calls.append((sequence, start, len(tokens)))

    def run(self, parts: Sequence[Part]) -> list[Outcome]:
        self.calls.append([(part.sequence, len(part.judged.draft)) for part in parts])
        if len(self.calls) == self.fails_at:
            raise RuntimeError("it broke")
        time.sleep(self._pass_s)
        return [self._judge(part) for part in parts]

    def _judge(self, part: Part) -> Outcome:
        stands = list(itertools.takewhile(lambda token: token == SAYS, part.judged.draft))
        return Outcome(Judgement((*stands, SAYS), len(stands)), None)

    @property
    def passes(self) -> list[list[tuple[int, int]]]:
        return [call for call in self.calls if isinstance(call, list)]


def slot_of(**fields: object) -> Slot:
    return Slot(
        opening(**fields),
        Limits(max_verify=16, max_ahead=32),
        vocabulary_size=V,
        u=iter(()),
        now=time.monotonic(),
    )


def place(scheduler: Scheduler, slot: Slot, sequence: int) -> None:
    slot.sequence = sequence
    scheduler.add(slot)


@asynccontextmanager
async def scheduling(
    engine: NotingEngine, max_rows: int = 64, prefill_rows: int = 4
) -> AsyncIterator[Scheduler]:
    registry = CollectorRegistry()
    with ThreadPoolExecutor(1) as thread:
        scheduler = Scheduler(
            engine,
            thread,
            PassMetrics(registry, Metrics(registry)),
            max_rows=max_rows,
            prefill_rows=prefill_rows,
            clock=time.monotonic,
        )
        running = asyncio.create_task(scheduler.run())
        yield scheduler
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()


async def text_of(slot: Slot) -> list[int]:
    tokens: list[int] = []
    async with asyncio.timeout(5):
        while not isinstance(message := await slot.next(), Finish):
            assert isinstance(message, Commit)
            tokens.extend(message.tokens)
    return tokens


async def test_a_prompt_is_read_in_pieces_but_for_its_last_token() -> None:
    engine = NotingEngine()
    async with scheduling(engine) as scheduler:
        slot = slot_of(prompt=(1,) * 11, max_tokens=1)
        place(scheduler, slot, 2)
        assert await text_of(slot) == [SAYS]

    assert engine.calls == [(2, 0, 4), (2, 4, 4), (2, 8, 2), [(2, 0)]]


async def test_others_stream_on_while_a_prompt_is_read() -> None:
    engine = NotingEngine()
    async with scheduling(engine) as scheduler:
        first, second = slot_of(max_tokens=200), slot_of(prompt=(1,) * 41, max_tokens=1)
        place(scheduler, first, 0)
        await first.next()
        place(scheduler, second, 1)
        await text_of(second)
        scheduler.remove(first)

    begin = engine.calls.index((1, 0, 4))
    turns = engine.calls[begin : begin + 20]
    kinds = [isinstance(call, list) for call in turns]
    assert kinds == [False, True] * 10


async def test_sessions_that_start_together_share_a_pass() -> None:
    engine = NotingEngine()
    async with scheduling(engine) as scheduler:
        slots = [slot_of(prompt=(1,), max_tokens=6) for _ in range(3)]
        for i, slot in enumerate(slots):
            place(scheduler, slot, i)
        await asyncio.gather(*map(text_of, slots))

    assert engine.passes == [[(0, 0), (1, 0), (2, 0)]] * 6


async def test_drafts_that_came_during_the_prefill_go_into_the_first_pass() -> None:
    engine = NotingEngine()
    async with scheduling(engine) as scheduler:
        slot = slot_of(prompt=(1,) * 9, max_tokens=9)
        slot.receive(Draft(0, 0, 0, (SAYS,) * 5), time.monotonic())
        place(scheduler, slot, 0)
        await text_of(slot)

    assert engine.passes[0] == [(0, 5)]


async def test_a_pass_has_no_more_rows_than_allowed() -> None:
    engine = NotingEngine()
    async with scheduling(engine, max_rows=10) as scheduler:
        slots = [slot_of(prompt=(1,), max_tokens=30, fill="never") for _ in range(3)]
        for i, slot in enumerate(slots):
            slot.receive(Draft(0, 0, 0, (SAYS,) * 12), time.monotonic())
            place(scheduler, slot, i)
        for slot in slots:
            await slot.next()
            scheduler.remove(slot)

    assert all(sum(1 + drafts for _, drafts in parts) <= 10 for parts in engine.passes)
    assert len(engine.passes[0]) == 3


async def test_without_fill_in_nothing_is_said_before_a_draft_comes() -> None:
    engine = NotingEngine()
    async with scheduling(engine) as scheduler:
        slot = slot_of(prompt=(1,), fill="never")
        place(scheduler, slot, 0)
        await asyncio.sleep(0.02)
        assert engine.passes == []

        slot.receive(Draft(0, 0, 0, (SAYS, SAYS)), time.monotonic())
        scheduler.wake()
        first = await slot.next()

    assert isinstance(first, Commit)
    assert first.accepted == 2


async def test_a_held_session_goes_along_when_another_starts() -> None:
    engine = NotingEngine(pass_s=0.04)
    async with scheduling(engine) as scheduler:
        held = slot_of(prompt=(1,), max_tokens=40, fill="auto")
        other = slot_of(prompt=(1,), max_tokens=40)
        held._arrivals.first_s, held._arrivals.interval_s = 0.018, 0.004
        held.receive(Draft(0, 0, 0, (9,)), time.monotonic())
        place(scheduler, held, 0)
        place(scheduler, other, 1)
        for _ in range(4):
            await other.next()
        scheduler.remove(held)
        scheduler.remove(other)

    assert engine.passes[:2] == [[(0, 1), (1, 0)], [(0, 0), (1, 0)]]


@pytest.mark.parametrize("sessions", [1, 3])
async def test_a_pass_that_fails_ends_its_sessions_and_no_other(sessions: int) -> None:
    engine = NotingEngine()
    engine.fails_at = 2
    async with scheduling(engine) as scheduler:
        slots = [slot_of(prompt=(1,)) for _ in range(sessions)]
        for i, slot in enumerate(slots):
            place(scheduler, slot, i)
        for slot in slots:
            with pytest.raises(TargetFailed, match="it broke"):
                await text_of(slot)
            scheduler.remove(slot)
        later = slot_of(prompt=(1,), max_tokens=2)
        place(scheduler, later, 0)

        assert await text_of(later) == [SAYS, SAYS]


async def test_what_a_pass_says_to_a_session_that_left_is_dropped() -> None:
    engine = NotingEngine(pass_s=0.05)
    async with scheduling(engine) as scheduler:
        gone = slot_of(prompt=(1,))
        place(scheduler, gone, 0)
        await asyncio.sleep(0.02)
        scheduler.remove(gone)
        successor = slot_of(prompt=(1,) * 3, max_tokens=2)
        place(scheduler, successor, 0)

        assert await text_of(successor) == [SAYS, SAYS]
        assert gone.machine.committed == []
