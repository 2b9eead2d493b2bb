"""When passes start and prompts are read, over an engine that only records its calls."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from gateway.metrics import Metrics
from speculation.protocol.messages import Commit, Draft, Finish, Limits
from speculation.sampling.judging import Judgement
from speculation.verifying.machine import Verdict, VerifyMachine
from tests.verifier.fake_target import opening
from verifier.llama_target.judging import Part
from verifier.llama_target.scheduler import Scheduler
from verifier.llama_target.slot import Slot
from verifier.metrics import PassMetrics
from verifier.target import TargetFailed

V = 64
TOKEN = 20
"""The token that this engine always generates."""


class RecordingEngine:
    """Accepts draft tokens that are TOKEN; passes take pass_s."""

    def __init__(self, pass_s: float = 0.002) -> None:
        self.calls: list[list[tuple[int, int]] | tuple[int, int, int]] = []
        """A pass: (sequence, drafts) of each part. A prompt's piece: sequence, start, rows."""

        self.fails_at: int | None = None
        self._pass_s = pass_s

    def prefill(self, sequence: int, start: int, tokens: Sequence[int]) -> None:
        self.calls.append((sequence, start, len(tokens)))

    def run(self, parts: Sequence[Part]) -> list[Verdict]:
        self.calls.append([(part.sequence, len(part.judged.draft)) for part in parts])
        if len(self.calls) == self.fails_at:
            raise RuntimeError("it broke")
        time.sleep(self._pass_s)
        return [self._judge(part) for part in parts]

    def _judge(self, part: Part) -> Verdict:
        accepted = list(itertools.takewhile(lambda token: token == TOKEN, part.judged.draft))
        return Verdict(Judgement((*accepted, TOKEN), len(accepted)))

    @property
    def passes(self) -> list[list[tuple[int, int]]]:
        return [call for call in self.calls if isinstance(call, list)]


class Sessions:
    """A scheduler over its machine, and the sessions of both."""

    def __init__(self, engine: RecordingEngine, thread: Executor, max_rows: int) -> None:
        registry = CollectorRegistry()
        self.machine = VerifyMachine(iter(()))
        self._names = itertools.count()
        self.scheduler = Scheduler(
            engine,
            self.machine,
            thread,
            PassMetrics(registry, Metrics(registry)),
            max_rows=max_rows,
            prefill_rows=4,
            clock=time.monotonic,
        )

    def open(self, **fields: object) -> Slot:
        """Open a session that has no place in the KV cache yet."""
        name = str(next(self._names))
        self.machine.open(
            name,
            opening(**fields),
            Limits(max_verify=16, max_ahead=32),
            vocabulary_size=V,
            now=time.monotonic(),
        )
        return Slot(name, self.machine.session(name))

    def place(self, slot: Slot, sequence: int) -> None:
        slot.sequence = sequence
        self.scheduler.add(slot)

    def receive(self, slot: Slot, *tokens: int) -> None:
        """Let draft tokens arrive at the beginning of a session."""
        now = time.monotonic()
        slot.send(self.machine.received(slot.name, Draft(0, 0, 0, tokens), arrived=now))
        self.scheduler.wake()

    def close(self, slot: Slot) -> None:
        self.machine.close(slot.name)
        self.scheduler.remove(slot)


@asynccontextmanager
async def scheduling(engine: RecordingEngine, max_rows: int = 64) -> AsyncIterator[Sessions]:
    with ThreadPoolExecutor(1) as thread:
        sessions = Sessions(engine, thread, max_rows)
        running = asyncio.create_task(sessions.scheduler.run())
        yield sessions
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
    engine = RecordingEngine()
    async with scheduling(engine) as sessions:
        slot = sessions.open(prompt=(1,) * 11, max_tokens=1)
        sessions.place(slot, 2)
        assert await text_of(slot) == [TOKEN]

    assert engine.calls == [(2, 0, 4), (2, 4, 4), (2, 8, 2), [(2, 0)]]


async def test_others_stream_on_while_a_prompt_is_read() -> None:
    engine = RecordingEngine()
    async with scheduling(engine) as sessions:
        first = sessions.open(max_tokens=200)
        second = sessions.open(prompt=(1,) * 41, max_tokens=1)
        sessions.place(first, 0)
        await first.next()
        sessions.place(second, 1)
        await text_of(second)
        sessions.close(first)

    begin = engine.calls.index((1, 0, 4))
    turns = engine.calls[begin : begin + 20]
    kinds = [isinstance(call, list) for call in turns]
    assert kinds == [False, True] * 10


async def test_sessions_that_start_together_share_a_pass() -> None:
    engine = RecordingEngine()
    async with scheduling(engine) as sessions:
        slots = [sessions.open(prompt=(1,), max_tokens=6) for _ in range(3)]
        for i, slot in enumerate(slots):
            sessions.place(slot, i)
        await asyncio.gather(*map(text_of, slots))

    assert engine.passes == [[(0, 0), (1, 0), (2, 0)]] * 6


async def test_draft_tokens_that_arrive_during_the_prefill_go_into_the_first_pass() -> None:
    engine = RecordingEngine()
    async with scheduling(engine) as sessions:
        slot = sessions.open(prompt=(1,) * 9, max_tokens=9)
        sessions.receive(slot, *(TOKEN,) * 5)
        sessions.place(slot, 0)
        await text_of(slot)

    assert engine.passes[0] == [(0, 5)]


async def test_a_pass_has_no_more_rows_than_allowed() -> None:
    engine = RecordingEngine()
    async with scheduling(engine, max_rows=10) as sessions:
        slots = [sessions.open(prompt=(1,), max_tokens=30, fill="never") for _ in range(3)]
        for i, slot in enumerate(slots):
            sessions.receive(slot, *(TOKEN,) * 12)
            sessions.place(slot, i)
        for slot in slots:
            await slot.next()
            sessions.close(slot)

    assert all(sum(1 + drafts for _, drafts in parts) <= 10 for parts in engine.passes)
    assert len(engine.passes[0]) == 3


async def test_without_fill_in_passes_nothing_is_generated_before_a_draft_arrives() -> None:
    engine = RecordingEngine()
    async with scheduling(engine) as sessions:
        slot = sessions.open(prompt=(1,), fill="never")
        sessions.place(slot, 0)
        await asyncio.sleep(0.02)
        assert engine.passes == []

        sessions.receive(slot, TOKEN, TOKEN)
        first = await slot.next()

    assert isinstance(first, Commit)
    assert first.accepted == 2


async def test_a_held_session_takes_part_when_another_starts() -> None:
    engine = RecordingEngine(pass_s=0.04)
    async with scheduling(engine) as sessions:
        held = sessions.open(prompt=(1,), max_tokens=40, fill="auto")
        other = sessions.open(prompt=(1,), max_tokens=40)
        arrivals = sessions.machine._sessions[held.name].arrivals
        arrivals.first_s, arrivals.interval_s = 0.018, 0.004
        sessions.receive(held, 9)
        sessions.place(held, 0)
        sessions.place(other, 1)
        for _ in range(4):
            await other.next()
        sessions.close(held)
        sessions.close(other)

    assert engine.passes[:2] == [[(0, 1), (1, 0)], [(0, 0), (1, 0)]]


@pytest.mark.parametrize("count", [1, 3])
async def test_a_pass_that_fails_ends_its_sessions_and_no_other(count: int) -> None:
    engine = RecordingEngine()
    engine.fails_at = 2
    async with scheduling(engine) as sessions:
        slots = [sessions.open(prompt=(1,)) for _ in range(count)]
        for i, slot in enumerate(slots):
            sessions.place(slot, i)
        for slot in slots:
            with pytest.raises(TargetFailed, match="it broke"):
                await text_of(slot)
            sessions.close(slot)
        later = sessions.open(prompt=(1,), max_tokens=2)
        sessions.place(later, 0)

        assert await text_of(later) == [TOKEN, TOKEN]


async def test_what_a_pass_generates_for_a_session_that_left_is_dropped() -> None:
    engine = RecordingEngine(pass_s=0.05)
    async with scheduling(engine) as sessions:
        gone = sessions.open(prompt=(1,))
        session = sessions.machine.session(gone.name)
        sessions.place(gone, 0)
        await asyncio.sleep(0.02)
        sessions.close(gone)
        successor = sessions.open(prompt=(1,) * 3, max_tokens=2)
        sessions.place(successor, 0)

        assert await text_of(successor) == [TOKEN, TOKEN]
        assert session.committed == []
