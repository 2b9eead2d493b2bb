"""The drafter's thread over a KV cache that rejects gaps, as llama.cpp does."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.draft import llama as thread
from edge_agent.draft import slot as reading_on
from edge_agent.draft.drafter import CannotDraft
from edge_agent.draft.llama import CHUNK_TOKENS, LlamaDrafter
from edge_agent.draft.reading_on import (
    AFTER_S,
    CHUNK_S,
    IDLE_S,
    MIN_CHUNK_TOKENS,
    SOON_S,
    ReadingOn,
)
from edge_agent.draft.slot import KvSlot, ReadingPolicy, View
from speculation.distributions import Logits
from speculation.draft_token import DraftToken
from tests.edge_agent.fake_cache import (
    FakeCache,
    V,
    draft_after,
    drafts_after,
    taken,
    truth,
    turn,
)


async def test_a_draft_follows_its_whole_context_wherever_the_chain_breaks(
    drafter: LlamaDrafter,
) -> None:
    slot = drafter.take([1, 2, 3])
    chance = np.random.default_rng(1)
    context = [1, 2, 3]

    for _ in range(60):
        assert await draft_after(slot, context) == truth(context)
        keep = int(chance.integers(3, len(context) + 1))
        context = [*context[:keep], *(int(t) for t in chance.integers(0, V, 2))]


async def test_when_all_slots_are_taken_there_is_none_until_one_is_left(
    drafter: LlamaDrafter, cache: FakeCache
) -> None:
    first, *_ = [taken(drafter, [1]) for _ in range(cache.limits.sequences - 1)]

    assert drafter.take([1]) is None
    first.leave()
    first.leave()

    assert drafter.take([1]) is not None
    assert drafter.take([1]) is None


async def test_an_answer_that_makes_no_step_for_long_gives_its_slot_to_another(
    drafter: LlamaDrafter, cache: FakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle, *others = [taken(drafter, [n]) for n in range(1, cache.limits.sequences)]
    for slot in others:
        await draft_after(slot, [1, 2])
    monkeypatch.setattr(thread, "GIVES_WAY_S", 0.0)

    new = taken(drafter, [7])
    assert await draft_after(new, [7, 8]) == truth([7, 8])
    with pytest.raises(CannotDraft, match="another answer"):
        await draft_after(idle, [1, 2])
    idle.leave()  # frees nothing
    monkeypatch.setattr(thread, "GIVES_WAY_S", 60.0)
    assert drafter.take([1]) is None


async def test_a_prompt_that_fills_the_cache_gets_no_slot_where_it_must_be_read_whole(
    drafter: LlamaDrafter,
) -> None:
    assert drafter.take([1] * 300, whole=True) is None


async def test_a_little_in_common_does_not_cost_a_long_conversation_its_slot(
    drafter: LlamaDrafter, cache: FakeCache
) -> None:
    talk = list(range(60))
    await turn(drafter, talk)

    await draft_after(drafter.take([0, 1, 99]), [0, 1, 99])
    before = cache.rows
    await turn(drafter, talk)

    assert cache.rows - before == 1


async def test_a_long_prompt_goes_in_chunks_together_with_another_sessions_tokens(
    drafter: LlamaDrafter, cache: FakeCache
) -> None:
    long, short = [i % V for i in range(CHUNK_TOKENS * 2)], [5]
    cache.gate.clear()
    first = asyncio.create_task(draft_after(drafter.take(long), long))
    second = asyncio.create_task(draft_after(drafter.take(short), short))
    await asyncio.sleep(0.05)
    cache.gate.set()

    assert await first == truth(long)
    assert await second == truth(short)
    assert max(len(s.tokens) for segments in cache.passes for s in segments) == CHUNK_TOKENS
    assert any(len(segments) == 2 for segments in cache.passes)


async def test_a_cancelled_step_ends_after_the_running_pass(
    drafter: LlamaDrafter, cache: FakeCache
) -> None:
    long = [i % V for i in range(CHUNK_TOKENS * 2)]
    slot = drafter.take(long)
    cache.gate.clear()
    step = asyncio.create_task(draft_after(slot, long))
    await asyncio.sleep(0.05)
    step.cancel()
    await asyncio.wait([step])
    cache.gate.set()

    assert await draft_after(slot, [1, 2, 3]) == truth([1, 2, 3])
    assert cache.rows <= CHUNK_TOKENS + 3


async def test_a_pass_that_fails_fails_its_steps_and_the_next_step_works(
    drafter: LlamaDrafter, cache: FakeCache
) -> None:
    slot = drafter.take([1, 2, 3])
    await draft_after(slot, [1, 2, 3])
    cache.broken = True

    with pytest.raises(CannotDraft, match="out of luck"):
        await draft_after(slot, [1, 2, 3, 4])

    assert await draft_after(slot, [1, 2, 3, 4]) == truth([1, 2, 3, 4])


async def test_a_sampler_that_fails_fails_its_step_and_the_next_step_works(
    drafter: LlamaDrafter,
) -> None:
    def broken(logits: Logits, position: int) -> DraftToken:
        raise ZeroDivisionError("no distribution")

    slot = taken(drafter, [1, 2, 3])

    with pytest.raises(CannotDraft, match="no distribution"):
        async with asyncio.timeout(5):
            await slot.step([1, 2, 3], lambda _: broken)

    assert await draft_after(slot, [1, 2, 3]) == truth([1, 2, 3])


async def test_a_sampler_that_fails_fails_no_other_sessions_step(
    drafter: LlamaDrafter, cache: FakeCache
) -> None:
    def broken(logits: Logits, position: int) -> DraftToken:
        raise ZeroDivisionError("no distribution")

    async def fail() -> None:
        with pytest.raises(CannotDraft, match="no distribution"):
            await taken(drafter, [4]).step([4], lambda _: broken, ahead=[5, 6])

    cache.gate.clear()
    steps = [asyncio.create_task(draft_after(taken(drafter, [9]), [9]))]
    await asyncio.sleep(0.05)
    before, after = taken(drafter, [1]), taken(drafter, [2, 3])
    steps.append(asyncio.create_task(draft_after(before, [1])))
    failing = asyncio.create_task(fail())
    steps.append(asyncio.create_task(draft_after(after, [2, 3])))
    await asyncio.sleep(0.05)
    cache.gate.set()

    assert await asyncio.gather(*steps) == [truth([9]), truth([1]), truth([2, 3])]
    await failing
    assert max(map(len, cache.passes)) == 3


async def test_an_empty_prompt_gets_no_slot(drafter: LlamaDrafter) -> None:
    assert drafter.take([]) is None


async def test_a_whole_context_past_the_cache_is_an_error_of_that_step(
    drafter: LlamaDrafter,
) -> None:
    slot = drafter.take([1], whole=True)

    with pytest.raises(CannotDraft, match="NoRoom"):
        await draft_after(slot, [1] * 301)


async def test_closing_cancels_waiting_steps_and_frees_the_cache(cache: FakeCache) -> None:
    drafter = LlamaDrafter(cache)
    long = [i % V for i in range(250)]
    cache.gate.clear()
    step = asyncio.create_task(draft_after(drafter.take(long), long))
    await asyncio.sleep(0.05)

    closing = asyncio.create_task(asyncio.to_thread(drafter.close))
    await asyncio.sleep(0.05)
    cache.gate.set()
    await closing

    with pytest.raises(asyncio.CancelledError):
        await step
    assert cache.closed


# --- tokens that are read ahead of the chain


async def test_reading_ahead_drafts_what_step_by_step_would_and_no_further(
    drafter: LlamaDrafter,
) -> None:
    slot = drafter.take([1, 2, 3])
    chance = np.random.default_rng(2)
    context = [1, 2, 3]

    for _ in range(40):
        truths: list[int] = []
        while len(truths) < 6:
            truths.append(truth([*context, *truths]))
        right = int(chance.integers(0, 4))
        wrong = [(token + 1) % V for token in truths[right : right + int(chance.integers(3))]]
        ahead = [*truths[:right], *wrong]

        tokens = await drafts_after(slot, context, ahead)

        assert tokens == truths[: right + 1]
        context = [*context, *tokens]


async def test_what_was_read_ahead_and_drafted_is_not_read_again(
    drafter: LlamaDrafter, cache: FakeCache
) -> None:
    slot = drafter.take([1, 2, 3])
    first = truth([1, 2, 3])
    second = truth([1, 2, 3, first])

    assert await drafts_after(slot, [1, 2, 3], [first, V - 1, 0]) == [first, second]
    await draft_after(slot, [1, 2, 3, first, second])

    assert second != V - 1
    assert [len(segment.tokens) for (segment,) in cache.passes] == [6, 1]


async def test_ahead_is_read_as_far_as_there_is_room(
    drafter: LlamaDrafter, cache: FakeCache
) -> None:
    prompt = [i % V for i in range(CHUNK_TOKENS - 2)]
    slot = drafter.take(prompt)
    first = truth(prompt)
    second = truth([*prompt, first])
    full = [*prompt * 5][:298]

    in_chunk = await drafts_after(slot, prompt, [first, second, 5, 6])
    assert in_chunk == [first, second, truth([*prompt, first, second])]
    assert len(cache.passes[-1][0].tokens) == CHUNK_TOKENS

    assert (await drafts_after(slot, full, [truth(full), 2, 3]))[0] == truth(full)
    assert cache.held == 300  # its context_tokens
    assert await drafts_after(slot, [*full, 1, 2], [3]) == [truth([*full, 1, 2])]


# When the rest of a prompt is read, and how much of it at once.


@given(
    st.integers(1, 5000),
    st.integers(1, 20_000),
    st.floats(0.0, 5.0),
    st.booleans(),
    st.booleans(),
)
def test_a_step_waits_for_no_long_chunk_and_for_one_only_where_the_rest_is_soon_read(
    speed: int, rest: int, idle_s: float, step_waits: bool, ended: bool
) -> None:
    slot = KvSlot(0, taken=True, session=object(), rest=range(rest))
    cache, reading = FakeCache(), ReadingPolicy(room=300, tokens_per_s=speed)
    on, now = ReadingOn(KvSlot(1), reading, CHUNK_TOKENS), 100.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading_on.time, "monotonic", lambda: now)
        on.pass_ended(ended=ended)
        now += idle_s
        wait_s = on.wait_s([slot])
        due = on.next_slot([slot], step_waits=step_waits)
        chunk = on.begin_chunk(slot, cache, step_waits=step_waits)
        on.chunk_was_read(slot, chunk.tokens)
        again = on.next_slot([slot], step_waits=True)

    assert wait_s == pytest.approx(max(0.0, IDLE_S - idle_s))
    assert (due is slot) == (not step_waits or (ended and rest <= speed * SOON_S))
    assert again is None
    limit_s = IDLE_S if step_waits else min(idle_s, CHUNK_S)
    assert 0 < len(chunk.tokens) <= min(CHUNK_TOKENS, max(MIN_CHUNK_TOKENS, speed * limit_s))
    assert (slot.rest == ()) == (len(chunk.tokens) == rest)


def test_what_is_read_on_counts_for_its_own_session_alone() -> None:
    slots = [
        KvSlot(each, taken=True, session=object(), rest=range(300), view=View(first))
        for each, first in enumerate((0, 200))
    ]
    spare = KvSlot(2, tokens=[*range(300)], session=object())
    on = ReadingOn(spare, ReadingPolicy(300, 100.0), CHUNK_TOKENS)
    due = []
    for slot in slots:
        on.pass_ended(ended=True)
        due.append(on.next_slot([slot], step_waits=True))

    assert due == [None, slots[1]]


@pytest.mark.parametrize(
    ("runs", "idle_s", "read"),
    [(False, AFTER_S - 1, 1), (False, AFTER_S + 1, None), (True, 0.0, None), (None, 9e9, 2)],
)
def test_a_session_that_ended_is_read_on_for_a_while_if_no_other_runs(
    runs: bool | None, idle_s: float, read: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sessions of slots 0 and 1 have ended; runs: that of slot 2 runs, and has no rest; or,
    None, it has one."""
    slots = [KvSlot(each, taken_at=each, rest=range(9)) for each in range(3)]
    slots[2].taken = runs is not False
    if runs is not None:
        slots[2].rest = ()
    on = ReadingOn(KvSlot(3), ReadingPolicy(300, 100.0), CHUNK_TOKENS)
    monkeypatch.setattr(reading_on.time, "monotonic", lambda: 100.0)
    on.pass_ended(ended=True)
    monkeypatch.setattr(reading_on.time, "monotonic", lambda: 100.0 + idle_s)

    due = on.next_slot(slots, step_waits=False)

    assert due is (None if read is None else slots[read])
    assert (on.wait_s(slots) is None) == (read is None)


@pytest.mark.parametrize(
    ("tokens", "took_s", "learned"), [(16, 0.08, 125.0), (15, 0.08, 100.0)]
)
def test_the_reading_speed_is_learned_from_passes_of_many_tokens(
    tokens: int, took_s: float, learned: float
) -> None:
    reading = ReadingPolicy(room=300, tokens_per_s=100.0)

    reading.observe(tokens, took_s)

    assert reading.tokens_per_s == pytest.approx(learned)
