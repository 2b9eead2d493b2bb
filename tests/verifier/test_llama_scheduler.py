"""When passes start and prompts are read, over an engine that only records its calls."""

from __future__ import annotations

import asyncio
from functools import partial
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculation.wire import Framed
from tests.verifier.recording_engine import (
    TOKEN,
    RecordingEngine,
    scheduling,
    text_of,
)
from verifier.llama_target.kv_slots import KvSlots
from verifier.llama_target.pieces import PASSES, Pieces
from verifier.llama_target.slot import Slot
from verifier.target import Reply, TargetFailed


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


async def test_a_prompt_is_scored_in_pieces_between_which_others_stream_on() -> None:
    engine = RecordingEngine()
    async with scheduling(engine) as sessions:
        other = sessions.open(max_tokens=200)
        sessions.assign(other, 0)
        await other.next()
        prompt_logprobs = sessions.score(*range(42))
        prompt_logprobs.assign(
            1, cached_tokens=7
        )  # a cache has no logits, so that these are read anew
        sessions.slots[prompt_logprobs.name] = prompt_logprobs
        async with asyncio.timeout(5):
            scores = await prompt_logprobs.scores()
        await asyncio.sleep(0.01)
        sessions.close(other)

    pieces = [call for call in engine.calls if call[:1] == (1,)]
    begin, end = (engine.calls.index(piece) for piece in (pieces[0], pieces[-1]))
    kinds = [isinstance(call, list) for call in engine.calls[begin : end + 1]]
    assert [each.logprob for each in scores] == [-float(token) for token in range(1, 42)]
    assert sum(rows for _, _, rows in pieces) == 41
    assert max(rows for _, _, rows in pieces) <= 4
    assert kinds == [False, True] * (len(pieces) - 1) + [False]
    assert all(sequence == 0 for parts in engine.passes for sequence, _ in parts)


async def test_a_score_of_one_token_is_empty_and_a_piece_that_fails_ends_its_score() -> None:
    engine = RecordingEngine()
    engine.fails_at = 2
    async with scheduling(engine) as sessions:
        one, long = sessions.score(1), sessions.score(*range(9))
        sessions.assign(long, 0)

        assert await one.scores() == []
        with pytest.raises(TargetFailed, match="it broke"):
            async with asyncio.timeout(5):
                await long.scores()


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
        for rows in (1, 2, 17):
            sessions.machine.latency.observe(rows, 0.1)
        held = sessions.open(prompt=(1,), max_tokens=40, fill="auto")
        arrivals = sessions.machine._sessions[held.name].arrivals
        arrivals.first_s, arrivals.interval_s = 0.02, 0.002
        sessions.receive(held, 9)  # it is rejected, and the next pass waits for another one
        sessions.assign(held, 0)
        async with asyncio.timeout(2):
            for _ in range(2):
                await held.next()
        sessions.close(held)

        waited_s = sessions.registry.get_sample_value("picospec:draft_wait_seconds_sum")
        assert waited_s is not None
        assert waited_s >= 0.02
    assert engine.passes[:2] == [[(0, 1)], [(0, 0)]]


async def test_a_pass_that_fails_ends_its_sessions_and_no_other() -> None:
    engine = RecordingEngine()
    engine.fails_at = 2
    async with scheduling(engine) as sessions:
        slots = [sessions.open(prompt=(1,)) for _ in range(3)]
        for i, slot in enumerate(slots):
            sessions.assign(slot, i)
        for slot in slots:
            with pytest.raises(TargetFailed, match="it broke"):
                await text_of(slot)
            sessions.close(slot)
        later = sessions.open(prompt=(1,), max_tokens=2)
        sessions.assign(later, 0)

        assert await text_of(later) == [TOKEN, TOKEN]


async def test_a_reader_that_fails_loses_its_session_and_no_other() -> None:
    def deliver(reply: Framed[Reply]) -> None:
        raise ZeroDivisionError

    async with scheduling(RecordingEngine()) as sessions:
        failing = sessions._opened(partial(Slot, deliver=deliver), prompt=(1,))
        other = sessions.open(prompt=(1,), max_tokens=2)
        sessions.assign(failing, 0)
        sessions.assign(other, 1)

        assert await text_of(other) == [TOKEN, TOKEN]
        with pytest.raises(ZeroDivisionError):
            await failing.over


# A free sequence goes to the prompt it suits best.


def places(*held: tuple[int, ...]) -> KvSlots:
    """KvSlots whose sequences 0, 1, ... hold this."""
    made = KvSlots(len(held))
    for sequence in sorted(made.take(())[0] for _ in held):
        made.release(sequence, held[sequence])
    return made


@pytest.mark.parametrize(
    ("held", "prompt", "place"),
    [
        ([(1, 2), (1, 2, 3, 4), (9,)], (1, 2, 3, 4, 5), (1, 4)),
        ([(1, 2), (9,)], (1, 2, 7), (0, 2)),
        ([(1, *range(100)), ()], (1, 7), (1, 0)),
        ([(1, 2, 3)], (1, 2), (0, 1)),
    ],
    ids=[
        "the sequence that it shares most with",
        "the shorter one, of which nothing is lost",
        "an empty one, which spoils no long conversation",
        "all but its last token, which is always decoded",
    ],
)
def test_a_prompt_gets(
    held: list[tuple[int, ...]], prompt: tuple[int, ...], place: tuple[int, int]
) -> None:
    made = places(*held)

    assert made.take(prompt) == place
    assert made.free == len(held) - 1


def test_conversations_that_are_over_do_not_keep_their_sequences() -> None:
    """Three that take turns, each 10 tokens longer than the last, find all of it at last."""
    made = places(*((100 + i,) * 1000 for i in range(4)))
    texts = [[name] * 20 for name in (1, 2, 3)]
    for _ in range(40):
        found = []
        for text in texts:
            sequence, common = made.take(text)
            found.append(common)
            made.release(sequence, tuple(text))
            text.extend(text[-1:] * 10)

    assert found == [400, 400, 400]


def test_a_long_conversation_outlives_many_short_prompts() -> None:
    made = places((1,) * 1000, *((100 + i,) * 10 for i in range(3)))
    for prompt in range(200, 240):
        made.release(made.take((prompt,) * 10)[0], (prompt,) * 10)

    assert made.take((1,) * 1010)[1] == 1000


# Whose prompt is read next, and how much of it between two passes.

MOST = 63


def reading(*prompts: int, later: int = 0) -> list[int]:
    """Return after how many pieces each prompt is read. later: so many prompts of one piece
    come one by one, whenever the one before is read."""
    pieces, left, ends, read = Pieces(MOST), [*prompts], [0] * len(prompts), 0
    while any(left[: len(prompts)]):
        unread = [i for i, tokens in enumerate(left) if tokens]
        which = unread[pieces.choose([left[i] for i in unread])]
        left[which] -= min(MOST, left[which])
        read += 1
        if not left[which] and which < len(ends):
            ends[which] = read
        if later and not any(left[len(prompts) :]):
            left, later = [*left, MOST], later - 1
    return ends


@given(st.integers(1, 500), st.lists(st.integers(5_000, 20_000), max_size=4))
def test_a_short_prompt_takes_two_turns_for_each_piece_however_long_others_are(
    short: int, long: list[int]
) -> None:
    assert reading(*long, short)[-1] <= 2 * ceil(short / MOST)


@given(st.lists(st.integers(1, 5_000), min_size=1, max_size=5), st.integers(0, 200))
def test_a_prompt_waits_for_twice_what_came_before_it_and_never_for_what_comes_later(
    prompts: list[int], later: int
) -> None:
    ends, before = reading(*prompts, later=later), 0
    for tokens, end in zip(prompts, ends, strict=True):
        before += ceil(tokens / MOST)
        assert end <= 2 * before


@pytest.mark.parametrize("token_s", [0.0001, 0.004, 0.02, 0.3])
@pytest.mark.parametrize("pass_s", [0.01, 0.1, 1.0])
def test_a_piece_takes_as_long_as_two_passes_beside_others_and_is_whole_alone(
    token_s: float, pass_s: float
) -> None:
    def takes_s(tokens: int) -> float:
        return pass_s + tokens * token_s

    pieces = Pieces(MOST)
    for _ in range(20):
        rows = pieces.rows(pass_s)
        pieces.observe(rows, takes_s(rows))

    assert takes_s(rows) <= PASSES * pass_s or rows == 1
    assert rows == MOST or takes_s(rows + 2) > PASSES * pass_s
    assert pieces.rows(0.0) == MOST
