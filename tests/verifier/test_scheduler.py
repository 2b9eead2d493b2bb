"""When passes start and prompts are read, over an engine that only records its calls."""

from __future__ import annotations

import asyncio

import pytest

from picospec.verifier.target import TargetFailed
from tests.verifier.scheduling import (
    TOKEN,
    RecordingEngine,
    held_s,
    held_session,
    scheduling,
    text_of,
)


async def test_a_prompt_is_read_in_pieces_but_for_its_last_token_with_which_a_pass_begins() -> (
    None
):
    engine = RecordingEngine()
    async with scheduling(engine) as sessions:
        slot = sessions.open(prompt=(*[1] * 10, 3), max_tokens=2)
        sessions.assign(slot, 2)
        assert await text_of(slot) == [TOKEN, TOKEN]

    assert engine.calls == [(2, 0, 4), (2, 4, 4), (2, 8, 2), [(2, 0)], [(2, 0)]]
    assert engine.beginnings == [(10, 3), (11, TOKEN)]


async def test_the_latency_of_passes_is_learned_by_their_rows() -> None:
    engine = RecordingEngine(pass_s=0.01)
    async with scheduling(engine) as sessions:
        slot = sessions.open(prompt=(1,), max_tokens=3)
        sessions.receive(slot, TOKEN)
        sessions.assign(slot, 0)
        await text_of(slot)

    assert 0.01 <= sessions.machine.latency.of(2) < 1.0


async def test_others_stream_on_while_a_prompt_is_read() -> None:
    engine = RecordingEngine()
    async with scheduling(engine) as sessions:
        first = sessions.open(max_tokens=200)
        second = sessions.open(prompt=(1,) * 41, max_tokens=1)
        sessions.assign(first, 0)
        await first.next()
        sessions.assign(second, 1)
        await text_of(second)
        sessions.close(first)

    begin = next(i for i, call in enumerate(engine.calls) if call[:2] == (1, 0))
    turns = engine.calls[begin : begin + 20]
    kinds = [isinstance(call, list) for call in turns]
    assert kinds == [False, True] * 10


async def test_draft_tokens_that_arrive_during_the_prefill_go_into_the_first_pass() -> None:
    engine = RecordingEngine()
    async with scheduling(engine) as sessions:
        sessions.machine.latency.observe(1, 0.1)
        slot = sessions.open(prompt=(1,) * 9, max_tokens=9)
        sessions.receive(slot, *(TOKEN,) * 5)
        sessions.assign(slot, 0)
        await text_of(slot)

    assert engine.passes[0] == [(0, 5)]


async def test_a_pass_has_no_more_rows_than_allowed() -> None:
    engine = RecordingEngine()
    async with scheduling(engine, max_rows=10) as sessions:
        slots = [sessions.open(prompt=(1,), max_tokens=30, fill="never") for _ in range(3)]
        for i, slot in enumerate(slots):
            sessions.receive(slot, *(TOKEN,) * 12)
            sessions.assign(slot, i)
        for slot in slots:
            await slot.next()
            sessions.close(slot)

    assert all(sum(1 + drafts for _, drafts in parts) <= 10 for parts in engine.passes)
    assert len(engine.passes[0]) == 3  # they share it


async def test_a_hold_ends_when_the_draft_it_waited_for_does_not_arrive() -> None:
    engine = RecordingEngine(pass_s=0.1)
    async with scheduling(engine) as sessions:
        held = held_session(sessions)
        sessions.assign(held, 0)
        async with asyncio.timeout(2):
            for _ in range(2):
                await held.next()
        sessions.close(held)

        assert held_s(sessions) >= 0.02
    assert engine.passes[:2] == [[(0, 1)], [(0, 0)]]


@pytest.mark.parametrize("count", [1, 3])
async def test_a_pass_that_fails_ends_its_sessions_and_no_other(count: int) -> None:
    engine = RecordingEngine()
    engine.fails_at = 2
    async with scheduling(engine) as sessions:
        slots = [sessions.open(prompt=(1,)) for _ in range(count)]
        for i, slot in enumerate(slots):
            sessions.assign(slot, i)
        for slot in slots:
            with pytest.raises(TargetFailed, match="it broke"):
                await text_of(slot)
            sessions.close(slot)
        later = sessions.open(prompt=(1,), max_tokens=2)
        sessions.assign(later, 0)

        assert await text_of(later) == [TOKEN, TOKEN]


async def test_what_a_pass_generates_for_a_session_that_left_is_dropped() -> None:
    engine = RecordingEngine(pass_s=0.05)
    async with scheduling(engine) as sessions:
        gone = sessions.open(prompt=(1,))
        session = sessions.machine.session(gone.name)
        sessions.assign(gone, 0)
        await asyncio.sleep(0.02)
        sessions.close(gone)
        successor = sessions.open(prompt=(1,) * 3, max_tokens=2)
        sessions.assign(successor, 0)

        assert await text_of(successor) == [TOKEN, TOKEN]
        assert session.committed == []
