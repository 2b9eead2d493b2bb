"""When the rest of a prompt is read, and how much of it at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picospec.edge_agent.draft_model import reading_on
from picospec.edge_agent.draft_model.llama_drafter import CHUNK_TOKENS
from picospec.edge_agent.draft_model.llama_slot import KvSlot, Reading, View
from picospec.edge_agent.draft_model.reading_on import (
    CHUNK_S,
    IDLE_S,
    LEAST_CHUNK,
    SOON_S,
    ReadingOn,
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
    speed: int, rest: int, idle_s: float, waited_for: bool, ended: bool
) -> None:
    slot = KvSlot(0, taken=True, session=object(), rest=range(rest))
    cache, reading = FakeCache(), Reading(room=300, tokens_a_s=speed)
    on, now = ReadingOn(KvSlot(1), reading, CHUNK_TOKENS), 100.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading_on.time, "monotonic", lambda: now)
        on.stepped(ended=ended)
        now += idle_s
        patience_s = on.patience_s([slot])
        due = on.due([slot], waited_for=waited_for)
        chunk = on.begin_chunk(slot, cache, waited_for=waited_for)
        on.was_read(slot, chunk.tokens)
        again = on.due([slot], waited_for=True)

    assert patience_s == pytest.approx(max(0.0, IDLE_S - idle_s))
    assert (due is slot) == (not waited_for or (ended and rest <= speed * SOON_S))
    assert again is None
    limit_s = IDLE_S if waited_for else min(idle_s, CHUNK_S)
    assert 0 < len(chunk.tokens) <= min(CHUNK_TOKENS, max(LEAST_CHUNK, speed * limit_s))
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
        on.stepped(ended=True)
        due.append(on.due([slot], waited_for=True))

    assert due == [None, slots[1]]
    assert on.patience_s([KvSlot(0, rest=range(9))]) is None
