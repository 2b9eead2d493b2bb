"""When to start a pass: tables of cases, and what must never go the wrong way."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculation.protocol.messages import Draft
from speculation.verifying.pass_policy import HOLD_DRAFTS, Waiting, hold, share_rows, starters
from speculation.verifying.row_allocation import PassLatency
from tests.speculation import verifiers

SECONDS = st.floats(0.0, 10.0)


def times(first_s: float = 0.2, row_s: float = 0.002) -> PassLatency:
    """T(1) to T(17): one row more costs row_s."""
    learned = PassLatency()
    for rows in range(1, 18):
        learned.saw(rows, first_s + row_s * rows)
    return learned


def waiting(**changes: object) -> Waiting:
    fields = {
        "fill": "auto", "pending": 0, "acceptance": 0.8, "due_s": 0.03, "behind": 0,
        "interval_s": 0.02, "restart_s": 0.0, "times": times(), "most": 16,
    }  # fmt: skip
    return Waiting(**{**fields, **changes})  # type: ignore[arg-type]


HOLDS = {
    "drafts are about to arrive": (waiting(), 0.07),
    "one has come, more will": (waiting(pending=1, due_s=0.01), 0.05),
    "enough have come": (waiting(pending=HOLD_DRAFTS), 0.0),
    "none is expected": (waiting(due_s=inf), 0.0),
    "always": (waiting(fill="always"), 0.0),
    "never, and none pending": (waiting(fill="never"), inf),
    "never, one pending": (waiting(fill="never", pending=1), 0.0),
    "they are far": (waiting(due_s=0.5), 0.0),
    "one is overtaken": (waiting(acceptance=0.9, due_s=0, interval_s=0.01, behind=1), 0.02),
    "many are overtaken": (waiting(acceptance=0.9, due_s=0, interval_s=0.01, behind=8), 0.0),
    "they are useless": (waiting(acceptance=0.01), 0.0),
    "rows cost as much as passes": (waiting(times=times(0.0, 0.2)), 0.0),
    "a chain takes long to begin again": (waiting(due_s=0.1, restart_s=0.3), 0.14),
    "a chain begins again at once": (waiting(due_s=0.1), 0.0),
    "the draft is late": (waiting(due_s=-0.04), 0.0),
}


@pytest.mark.parametrize(("session", "expected"), HOLDS.values(), ids=HOLDS)
def test_a_pass_is_held_only_for_drafts_worth_waiting_for(
    session: Waiting, expected: float
) -> None:
    assert hold(session) == pytest.approx(expected)


@given(st.floats(-1, 10), SECONDS, st.integers(0, 5), st.floats(0, 1), st.floats(0.01, 1))
def test_a_held_pass_starts_in_the_end_and_not_later_for_what_comes_later(
    due_s: float, interval_s: float, pending: int, acceptance: float, pass_s: float
) -> None:
    session = waiting(
        due_s=due_s,
        interval_s=interval_s,
        pending=pending,
        acceptance=acceptance,
        times=times(pass_s),
    )

    held_s = hold(session)

    assert 0.0 <= held_s < inf
    assert hold(replace(session, due_s=max(0.0, due_s) + 20 * pass_s)) == 0.0
    assert hold(replace(session, due_s=due_s - held_s)) <= held_s


@pytest.mark.parametrize(
    ("holds_s", "taken"),
    [
        ([], []),
        ([0.1, inf], []),
        ([0.0, 0.1], [0, 1]),
        ([0.0, inf, 0.0], [0, 2]),
        ([inf], []),
    ],
)
def test_a_pass_that_starts_takes_all_but_those_that_need_a_draft(
    holds_s: list[float], taken: list[int]
) -> None:
    assert starters(holds_s) == taken


@pytest.mark.parametrize(
    ("fills", "judged"), [(["never"] * 2, [3, 3]), (["never", "auto"], [0, 0])]
)
def test_fill_never_has_all_its_drafts_judged_unless_others_pay_for_them(
    fills: list[str], judged: list[int]
) -> None:
    sessions = [verifiers.session(fill=fill) for fill in fills]
    for each in sessions:
        each.receive(Draft(0, 0, 0, (1, 2, 3)))
    dear = PassLatency()
    for rows in range(1, 10):
        dear.saw(rows, float(rows))

    assert share_rows(sessions, dear, most=16) == judged
