"""When the rest of a prompt is read, and how much of it at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picospec.edge_agent.draft import slot as reading_on
from picospec.edge_agent.draft.llama import CHUNK_TOKENS
from picospec.edge_agent.draft.slot import (
    AFTER_S,
    CHUNK_S,
    IDLE_S,
    MIN_CHUNK_TOKENS,
    SOON_S,
    KvSlot,
    Reading,
    ReadingOn,
    View,
)
from tests.edge_agent.fake_cache import FakeCache


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
    cache, reading = FakeCache(), Reading(room=300, tokens_per_s=speed)
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
    on = ReadingOn(spare, Reading(300, 100.0), CHUNK_TOKENS)
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
    on = ReadingOn(KvSlot(3), Reading(300, 100.0), CHUNK_TOKENS)
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
    reading = Reading(room=300, tokens_per_s=100.0)

    reading.observe(tokens, took_s)

    assert reading.tokens_per_s == pytest.approx(learned)
