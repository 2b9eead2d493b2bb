"""What the draft model reads of long prompts, over a KV cache that rejects gaps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picospec.edge_agent.draft_model import llama_drafter
from picospec.edge_agent.draft_model.llama_drafter import LlamaDrafter
from picospec.edge_agent.draft_model.llama_slot import (
    FIRST_TOKENS,
    LEAST_TOKENS,
    WHOLE,
    LlamaSlot,
)
from tests.edge_agent.fake_cache import FakeCache, V, draft_after, truth

ROOM = 300
LAST = ROOM // 4
"""The fake cache reads so fast that a view has as many last tokens as it may have."""

TURNS = st.tuples(
    st.integers(0, 5),
    st.integers(1, 400),
    st.lists(st.integers(0, 90), min_size=1, max_size=6),
    st.booleans(),
)
"""A conversation, the tokens that a turn adds, those that are committed before each step, and
whether steps read all of it."""


def text(seed: int, length: int) -> list[int]:
    """Return tokens of which any two stretches differ."""
    return [(at * at + seed * at + seed) % V for at in range(length)]


@pytest.fixture(autouse=True, scope="module")
def never_idle() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_drafter, "IDLE_S", 60.0)
        yield


@settings(max_examples=60, deadline=None)
@given(st.lists(TURNS, min_size=1, max_size=12))
async def test_in_any_turns_drafts_follow_the_view_and_little_is_read_for_the_first_one(
    turns: Sequence[tuple[int, int, list[int], bool]],
) -> None:
    cache = FakeCache(slots=2, context_tokens=ROOM)
    drafter, told = LlamaDrafter(cache), [list[int]() for _ in range(6)]
    for which, asked, committed, whole in turns:
        context = told[which]
        context += text(which, len(context) + asked)[len(context) :]
        slot = drafter.take(context, which % 2, whole=whole)
        if slot is None:
            assert whole
            continue
        before = cache.rows
        await drafted(slot, context)
        assert whole or cache.rows - before <= FIRST_TOKENS + LAST
        for tokens in committed:
            context += text(which, len(context) + tokens)[len(context) :]
            if not whole or len(context) <= ROOM:
                await drafted(slot, context)
            assert cache.held <= 3 * ROOM
        slot.leave()
    drafter.close()


async def drafted(slot: LlamaSlot, context: list[int]) -> None:
    """Draft, and check what the draft token follows."""
    token = await draft_after(slot, context)
    view = slot.slot.view
    seen = [*context[: view.first], *context[view.first + view.skipped :]]
    assert token == truth(seen)
    assert view == WHOLE or len(seen) - view.first >= LEAST_TOKENS
    assert not (slot.whole and view.skipped)


async def test_a_turn_goes_on_from_the_view_of_the_one_before() -> None:
    cache = FakeCache()
    drafter, context = LlamaDrafter(cache), text(1, 2000)
    for unread in (FIRST_TOKENS + LAST, 21, 21):
        before = cache.rows
        slot = drafter.take(context)
        context.append(await draft_after(slot, context))
        assert slot is not None
        slot.leave()
        assert cache.rows - before == unread
        context += text(2, len(context) + 20)[len(context) :]
    drafter.close()


async def test_conversations_lose_their_slots_in_the_order_of_their_last_turns() -> None:
    cache = FakeCache(slots=2)
    drafter = LlamaDrafter(cache)

    async def turn(which: int) -> int:
        before, prompt = cache.rows, [which, *text(which, 100)]
        slot = drafter.take(prompt)
        await draft_after(slot, prompt)
        assert slot is not None
        slot.leave()
        return cache.rows - before

    assert [await turn(which) for which in (1, 2, 1, 3, 1, 2)] == [101, 101, 1, 101, 1, 101]
    drafter.close()


@pytest.mark.parametrize("broken", [False, True])
async def test_a_prompt_is_read_on_while_no_step_waits_and_then_drafts_follow_all_of_it(
    monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    monkeypatch.setattr(llama_drafter, "IDLE_S", 0.01)
    cache = FakeCache(slots=2)
    drafter, prompt = LlamaDrafter(cache), text(1, 200)
    slot = drafter.take(prompt, "ann")
    assert slot is not None

    assert await draft_after(slot, prompt) == truth([*prompt[:FIRST_TOKENS], *prompt[-LAST:]])
    cache.broken = broken
    for _ in range(500):
        await asyncio.sleep(0.01 if slot.slot.rest else 0)
    before = cache.rows

    seen = slot.slot.view.of([*prompt, 1])
    assert (seen == [*prompt, 1]) is not broken
    assert await draft_after(slot, [*prompt, 1]) == truth(seen)
    assert cache.rows - before == 1
    assert drafter.read_tokens == LAST + (FIRST_TOKENS if broken else len(prompt))
    drafter.close()
