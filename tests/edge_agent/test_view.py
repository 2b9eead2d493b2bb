"""What the draft model reads of long prompts, over a KV cache that rejects gaps."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from picospec.edge_agent.draft.llama import LlamaDrafter
from picospec.edge_agent.draft.slot import (
    FIRST_TOKENS,
    MIN_TOKENS,
    Reading,
    StepRequest,
    View,
)
from picospec.models.llama_cpp.model import Context, Segment, common_prefix
from tests.edge_agent.fake_cache import (
    FakeCache,
    V,
    draft_after,
    rest_is_read,
    taken,
    truth,
    turn,
)

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
    """Return the first tokens of a text."""
    return Random(seed).choices(range(V), k=length)


@pytest.fixture
def reads_nothing_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reading, "wider_view", lambda *_: View(0, 1 << 30))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What steps read of their contexts."""

    def recording(request: StepRequest, reading: Reading, cache: Context) -> list[int]:
        seen.append(see(request, reading, cache))
        return seen[-1]

    see, seen = StepRequest.seen, list[list[int]]()
    monkeypatch.setattr(StepRequest, "seen", recording)
    return seen


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(TURNS, min_size=1, max_size=12))
async def test_in_any_turns_drafts_follow_the_beginning_and_the_end_of_their_contexts(
    seen: list[list[int]], turns: Sequence[tuple[int, int, list[int], bool]]
) -> None:
    cache = FakeCache(slots=2, context_tokens=ROOM)
    drafter, contexts = LlamaDrafter(cache), [list[int]() for _ in range(6)]
    for which, asked, committed, whole in turns:
        slot = drafter.take(text(which, len(contexts[which]) + asked), which % 2, whole=whole)
        for tokens in (asked, *committed):
            context = contexts[which] = text(which, len(contexts[which]) + tokens)
            if slot is None or (whole and len(context) > ROOM):
                assert whole
                continue
            token = await draft_after(slot, context)
            (read,) = seen[-1:]
            assert token == truth(read)
            assert cache.held <= 3 * ROOM
            if whole or read == context:
                assert read == context
                continue
            assert read[-MIN_TOKENS:] == context[-MIN_TOKENS:]
            first = common_prefix(read, context)
            assert first >= FIRST_TOKENS
            assert context[len(context) - len(read) + first :] == read[first:]
        if slot is not None:
            slot.leave()
    drafter.close()


@pytest.mark.usefixtures("reads_nothing_on")
@given(st.integers(1, 2000))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_little_is_read_of_any_prompt_for_the_first_draft_token(length: int) -> None:
    cache = FakeCache(slots=2, context_tokens=ROOM)
    drafter = LlamaDrafter(cache)

    await draft_after(drafter.take(text(1, length)), text(1, length))
    drafter.close()

    assert cache.rows <= FIRST_TOKENS + LAST


@pytest.mark.usefixtures("reads_nothing_on")
async def test_a_turn_goes_on_from_the_view_of_the_one_before() -> None:
    cache = FakeCache()
    drafter, context = LlamaDrafter(cache), text(1, 2000)
    for unread in (FIRST_TOKENS + LAST, 21, 21):
        before = cache.rows
        context.append(await turn(drafter, context))
        assert cache.rows - before == unread
        context += text(2, len(context) + 20)[len(context) :]
    drafter.close()


async def test_conversations_lose_their_slots_in_the_order_of_their_last_turns() -> None:
    cache = FakeCache(slots=2)
    drafter = LlamaDrafter(cache)

    read = []
    for which in (1, 2, 1, 3, 1, 2):
        before = cache.rows
        await turn(drafter, [which, *text(which, 100)])
        read.append(cache.rows - before)
    drafter.close()

    assert read == [101, 101, 1, 101, 1, 101]


@pytest.mark.parametrize(
    ("length", "broken", "skipped"), [(400, False, 0), (400, True, 208), (800, False, 172)]
)
async def test_more_of_a_prompt_is_read_beside_the_steps_and_then_drafts_follow_that(
    monkeypatch: pytest.MonkeyPatch, length: int, broken: bool, skipped: int
) -> None:
    cache, spare = FakeCache(slots=2, context_tokens=1000), 2
    decode = cache.decode

    def breaking(segments: Sequence[Segment]) -> None:
        if broken and segments[0].sequence == spare:
            raise OSError("out of luck")
        decode(segments)

    monkeypatch.setattr(cache, "decode", breaking)
    drafter, prompt = LlamaDrafter(cache), text(1, length)
    slot = taken(drafter, prompt, "ann")

    assert await draft_after(slot, prompt) == truth([*prompt[:FIRST_TOKENS], *prompt[-128:]])
    await rest_is_read(slot)
    before, seen = cache.rows, slot.slot.view.of([*prompt, 1])

    assert len(seen) == length + 1 - skipped
    assert await draft_after(slot, [*prompt, 1]) == truth(seen)
    assert cache.rows - before == 1
    drafter.close()


async def test_what_was_read_on_for_one_owner_is_read_again_for_another() -> None:
    drafter, prompt = LlamaDrafter(FakeCache(slots=2, context_tokens=1000)), text(1, 400)
    read = []
    for owner in ("ann", "ben"):
        slot = taken(drafter, prompt, owner)
        await draft_after(slot, prompt)
        await rest_is_read(slot)
        read.append(drafter.read_tokens)
        slot.leave()
    drafter.close()

    assert min(read[0], read[1] - read[0]) >= len(prompt)


async def test_the_rest_is_read_after_an_answer_and_the_next_turn_begins_there() -> None:
    drafter, prompt = LlamaDrafter(FakeCache(slots=1, context_tokens=1000)), text(1, 700)
    slot = taken(drafter, prompt)
    await draft_after(slot, prompt)
    slot.leave()
    await rest_is_read(slot)
    before, later = drafter.read_tokens, [*prompt, 1, 2]

    assert await draft_after(taken(drafter, later), later) == truth(later)
    assert drafter.read_tokens - before == 2
    drafter.close()
