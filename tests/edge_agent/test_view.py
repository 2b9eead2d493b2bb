"""What the draft model reads of long prompts, over a KV cache that rejects gaps."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from picospec.edge_agent.draft_model.llama_drafter import LlamaDrafter
from picospec.edge_agent.draft_model.llama_slot import LlamaSlot
from picospec.edge_agent.draft_model.view import FIRST_TOKENS, LEAST_TOKENS, View
from tests.edge_agent.fake_cache import FakeCache, V, draft_after, truth

ROOM = 300
LAST = ROOM // 4
"""The fake cache reads so fast that a view has as many last tokens as it may have."""

TURNS = st.tuples(st.integers(0, 5), st.integers(1, 400), st.integers(1, 60), st.booleans())
"""A conversation, the tokens that a turn adds, those of its answer, and whether it is whole."""


def text(seed: int, length: int) -> list[int]:
    """Return tokens of which any two stretches differ."""
    return [(at * at + seed * at + seed) % V for at in range(length)]


@settings(max_examples=60, deadline=None)
@given(st.lists(TURNS, min_size=1, max_size=12))
async def test_in_any_turns_drafts_follow_the_view_and_little_is_read_for_the_first_one(
    turns: Sequence[tuple[int, int, int, bool]],
) -> None:
    cache = FakeCache(sequences=2, context_tokens=ROOM)
    drafter, told = LlamaDrafter(cache), [list[int]() for _ in range(6)]
    for which, asked, answered, whole in turns:
        context = told[which]
        context += text(which, len(context) + asked)[len(context) :]
        slot = drafter.take(context, "owner", whole=whole)
        if slot is None:
            assert whole
            continue
        before = cache.rows
        for _ in range(answered):
            if whole and len(context) > ROOM:
                break
            context.append(await drafted(slot, context))
            assert cache.held <= 2 * ROOM
            if _ == 0 and not whole:
                assert cache.rows - before <= FIRST_TOKENS + LAST
        slot.leave()
    drafter.close()


async def drafted(slot: LlamaSlot, context: list[int]) -> int:
    """Return the draft token after a context, and check what it follows."""
    token = await draft_after(slot, context)
    view = slot.slot.view
    seen = view.of(context)
    assert token == truth(seen)
    assert view == View() or len(seen) - view.first >= LEAST_TOKENS
    assert seen == [*context[: view.first], *context[view.first + view.skipped :]]
    assert not (slot.whole and view.skipped)
    return token


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
    cache = FakeCache(sequences=2)
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
