"""How long to hold a pass: a table of cases, and what must never go the wrong way."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picospec.speculation.latency import PassLatency
from picospec.speculation.messages import Draft
from picospec.speculation.pass_policy import (
    MAX_HELD_FOR,
    Arrivals,
    Waiting,
    hold_s,
    runs_on,
    waiting,
)
from tests.speculation import verifiers
from tests.speculation.verifiers import latency

SECONDS = st.floats(0.0, 10.0)


def sloping(first_s: float = 0.2, row_s: float = 0.002) -> PassLatency:
    """T(1) to T(17): one row more costs row_s."""
    return latency(*(first_s + row_s * rows for rows in range(1, 18)))


def case(**changes: object) -> Waiting:
    fields = {
        "fill": "auto", "pending": 0, "acceptance": 0.8, "due_s": 0.03, "behind": 0,
        "interval_s": 0.02, "restart_s": 0.0,
    }  # fmt: skip
    return Waiting(**{**fields, **changes})  # type: ignore[arg-type]


HOLDS = {
    "draft tokens are about to arrive": (case(), 0.07),
    "one has come, more will": (case(pending=1, due_s=0.01), 0.05),
    "one more is worth it": (case(pending=MAX_HELD_FOR - 1, due_s=0.01), 0.05),
    "enough have come": (case(pending=MAX_HELD_FOR, due_s=0.01), 0.0),
    "none is expected": (case(due_s=inf), 0.0),
    "always": (case(fill="always"), 0.0),
    "never, and none pending": (case(fill="never"), inf),
    "never, one pending": (case(fill="never", pending=1), 0.0),
    "they are far": (case(due_s=0.5), 0.0),
    "one is overtaken": (case(acceptance=0.9, due_s=0, interval_s=0.01, behind=1), 0.02),
    "many are overtaken": (case(acceptance=0.9, due_s=0, interval_s=0.01, behind=8), 0.0),
    "they are useless": (case(acceptance=0.01), 0.0),
    "a chain takes long to begin again": (case(due_s=0.1, restart_s=0.3), 0.14),
    "a chain begins again at once": (case(due_s=0.1), 0.0),
    "the draft token is late": (case(due_s=-0.04), 0.0),
    "the draft token is a little late": (case(due_s=-0.03), 0.01),
}


@pytest.mark.parametrize(("session", "expected"), HOLDS.values(), ids=HOLDS)
def test_a_pass_is_held_only_for_draft_tokens_worth_waiting_for(
    session: Waiting, expected: float
) -> None:
    assert hold_s(session, sloping(), 16) == pytest.approx(expected)


RUNS_ON = {
    "none is expected": (case(due_s=inf), (), True),
    "one is due, for the position under way": (case(due_s=0.3, interval_s=0.2), (), True),
    "the one after it is due as well": (case(due_s=0.3, interval_s=0.05), (), False),
    "one has come for that position": (case(pending=1, due_s=inf), (0.8,), True),
    "one has come, and the next is due": (case(pending=1), (0.8,), False),
    "one more has come": (case(pending=2, due_s=inf), (0.8, 0.64), False),
    "they are useless": (case(acceptance=0.1), (0.1, 0.01, 0.001), True),
    "the verifier has some itself": (case(due_s=inf), (0.9, 0.8), False),
}


@pytest.mark.parametrize(("session", "gains", "expected"), RUNS_ON.values(), ids=RUNS_ON)
def test_a_session_runs_on_unless_draft_tokens_would_follow_the_outcome(
    session: Waiting, gains: tuple[float, ...], expected: bool
) -> None:
    assert runs_on(session, gains, sloping()) is expected


def test_no_pass_is_held_where_rows_cost_as_much_as_passes() -> None:
    assert hold_s(case(), sloping(0.0, 0.2), 16) == 0.0


def test_a_wait_that_earns_just_what_it_takes_is_not_worth_it() -> None:
    flat = latency(*[1.0] * 17)  # at best 2 tokens a second with one draft token a pass
    session = case(acceptance=1.0, interval_s=1.0)

    assert hold_s(replace(session, due_s=0.49), flat, 1) == pytest.approx(2.49)
    assert hold_s(replace(session, due_s=0.5), flat, 1) == 0.0


@given(st.floats(-1, 10), SECONDS, st.integers(0, 5), st.floats(0, 1), st.floats(0.01, 1))
def test_a_held_pass_starts_in_the_end_and_not_later_for_what_comes_later(
    due_s: float, interval_s: float, pending: int, acceptance: float, pass_s: float
) -> None:
    session = case(due_s=due_s, interval_s=interval_s, pending=pending, acceptance=acceptance)
    learned = sloping(pass_s)

    held_s = hold_s(session, learned, 16)

    later = replace(session, due_s=max(0.0, due_s) + 20 * pass_s)
    assert 0.0 <= held_s < inf
    assert hold_s(later, learned, 16) == 0.0
    assert hold_s(replace(session, due_s=due_s - held_s), learned, 16) <= held_s


def test_what_decides_is_read_from_the_session_and_its_arrivals() -> None:
    session = verifiers.session()
    arrivals = Arrivals(first_s=0.4, interval_s=0.1)
    session.receive(Draft(0, 0, 0, (1, 2)))
    arrivals.drafts_arrived(1.0, 2)

    found = waiting(session, arrivals, 1.04)

    assert found == Waiting("auto", 2, 0.9, pytest.approx(0.06), 0, 0.1, pytest.approx(0.5))
