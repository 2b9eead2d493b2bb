"""The drafter's thread, over a KV cache that rejects gaps, as llama.cpp does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from structlog.testing import capture_logs

from edge_agent.draft import llama as thread
from edge_agent.draft.drafter import CannotDraft, DraftSlot
from edge_agent.draft.llama import CHUNK_TOKENS, LlamaDrafter
from gateway.background_work import running_alongside
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


async def test_a_sampler_that_fails_fails_its_own_step_alone_and_the_next_one_works(
    drafter: LlamaDrafter, cache: FakeCache
) -> None:
    def broken(logits: Logits, position: int) -> DraftToken:
        raise ZeroDivisionError("no distribution")

    async def fail() -> None:
        slot = taken(drafter, [4])
        with pytest.raises(CannotDraft, match="no distribution"):
            await slot.step([4], lambda _: broken, ahead=[5, 6])
        assert await draft_after(slot, [4]) == truth([4])

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


@pytest.mark.parametrize(("prompt", "whole"), [([], False), ([1] * 300, True)])
async def test_a_prompt_that_is_empty_or_cannot_be_read_whole_gets_no_slot(
    drafter: LlamaDrafter, prompt: list[int], whole: bool
) -> None:
    assert drafter.take(prompt, whole=whole) is None


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


# --- a pass that does not end costs its sessions only their drafts


@asynccontextmanager
async def watched(drafter: LlamaDrafter) -> AsyncIterator[tuple[DraftSlot, DraftSlot]]:
    """Give two slots of a drafter that soon counts as stuck."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thread, "PASS_TIMEOUT_S", 0.05)
        patch.setattr(thread, "CHECK_S", 0.01)
        patch.setattr(thread, "CLOSE_S", 0.05)
        async with asyncio.timeout(5), running_alongside(drafter.watch()):
            yield taken(drafter, [1, 2, 3]), taken(drafter, [4, 5])


async def test_the_steps_that_wait_fail_and_that_is_logged(
    drafter: LlamaDrafter, cache: FakeCache
) -> None:
    cache.gate.clear()
    with capture_logs() as logs:
        async with watched(drafter) as (first, second):
            in_the_pass = asyncio.create_task(draft_after(first, [1, 2, 3]))
            await asyncio.sleep(0.02)
            behind_it = asyncio.create_task(draft_after(second, [4, 5]))
            failed = await asyncio.gather(in_the_pass, behind_it, return_exceptions=True)

            assert drafter.is_stuck
            assert drafter.take([6]) is None

    assert [type(error) for error in failed] == [CannotDraft, CannotDraft]
    assert [entry["event"] for entry in logs] == ["the draft model is stuck"]


@pytest.mark.parametrize("broken", ["next_slot", "truncate"])
async def test_an_error_of_its_own_costs_no_more_than_the_drafts(
    drafter: LlamaDrafter, cache: FakeCache, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(threading, "excepthook", lambda _: cache.gate.hold())
    async with watched(drafter) as (first, second):
        with monkeypatch.context() as during:
            during.setattr(drafter._reading_on, "next_slot", fails)
            if broken == "truncate":  # while it fails the step: its thread ends
                during.setattr(cache, "truncate", fails)
            with pytest.raises(CannotDraft):
                await draft_after(first, [1, 2, 3])

        assert drafter.is_stuck == (broken == "truncate")
        if not drafter.is_stuck:
            assert await draft_after(second, [4, 5]) == truth([4, 5])


async def test_a_pass_that_ends_after_all_lets_it_draft_again(
    drafter: LlamaDrafter, cache: FakeCache
) -> None:
    cache.gate.clear()
    async with watched(drafter) as (first, second):
        with pytest.raises(CannotDraft):
            await draft_after(first, [1, 2, 3])
        first.leave()

        cache.gate.set()
        assert await draft_after(second, [4, 5]) == truth([4, 5])

        slot = drafter.take([1, 2, 3])
        assert await draft_after(slot, [1, 2, 3]) == truth([1, 2, 3])


async def test_closing_does_not_wait_for_it_and_frees_nothing_that_it_uses(
    drafter: LlamaDrafter, cache: FakeCache
) -> None:
    cache.gate.clear()
    async with watched(drafter) as (first, _):
        step = asyncio.create_task(draft_after(first, [1, 2, 3]))
        await asyncio.sleep(0.02)

        assert drafter.close() is False

        assert not cache.closed
        step.cancel()
