"""What the draft model reads of long prompts, and when it reads the rest."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.draft import slot as reading_on
from edge_agent.draft.llama import CHUNK_TOKENS, LlamaDrafter
from edge_agent.draft.reading_on import (
    AFTER_S,
    CHUNK_S,
    IDLE_S,
    MIN_CHUNK_TOKENS,
    SOON_S,
    ReadingOn,
)
from edge_agent.draft.slot import (
    FIRST_TOKENS,
    MIN_TOKENS,
    KvSlot,
    ReadingPolicy,
    StepRequest,
    View,
)
from local_models.llama_cpp.model import Context
from local_models.llama_cpp.prefix import common_prefix
from local_models.llama_cpp.segments import Segment
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
    monkeypatch.setattr(ReadingPolicy, "wider_view", lambda *_: View(0, 1 << 30))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What steps read of their contexts."""

    def recording(request: StepRequest, reading: ReadingPolicy, cache: Context) -> list[int]:
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


@pytest.mark.system
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


@pytest.mark.system
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


@pytest.mark.system
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
