"""When to draft, send, verify: tables of cases, and what must never go the wrong way."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculation.messages import Limits
from speculation.pacing import (
    HOLD_DRAFTS,
    Arrivals,
    DraftPacing,
    Waiting,
    hold,
    may_draft,
    should_flush,
    window,
)

LIMITS = Limits(max_verify=16, max_ahead=64)
SECONDS = st.floats(0.0, 10.0)


@pytest.mark.parametrize(
    ("rtt_s", "pass_s", "draft_s", "tokens"),
    [
        (0.0, 0.0, 0.01, 16),
        (0.01, 0.2, 0.02, 27),
        (0.2, 0.2, 0.02, 36),
        (5.0, 0.2, 0.02, 64),
        (0.2, 0.2, 0.0, 64),
    ],
)
def test_the_window_is_a_pass_and_what_is_drafted_meanwhile(
    rtt_s: float, pass_s: float, draft_s: float, tokens: int
) -> None:
    assert window(LIMITS, rtt_s=rtt_s, pass_s=pass_s, draft_s=draft_s) == tokens


@given(SECONDS, SECONDS, SECONDS, SECONDS)
def test_the_window_grows_with_distance_and_never_over_the_limit(
    rtt_s: float, more_s: float, pass_s: float, draft_s: float
) -> None:
    near = window(LIMITS, rtt_s=rtt_s, pass_s=pass_s, draft_s=draft_s)
    far = window(LIMITS, rtt_s=rtt_s + more_s, pass_s=pass_s, draft_s=draft_s)

    assert LIMITS.max_verify <= near <= far <= LIMITS.max_ahead


@pytest.mark.parametrize(
    ("survival", "unverified", "expected"),
    [(1.0, 0, True), (0.1, 9, True), (0.099, 0, False), (1.0, 10, False), (0.5, 11, False)],
)
def test_drafting_goes_on_while_the_chain_may_stand_and_there_is_room(
    survival: float, unverified: int, expected: bool
) -> None:
    assert (
        may_draft(DraftPacing(), survival=survival, unverified=unverified, room=10) is expected
    )


@pytest.mark.parametrize(
    ("unsent", "drafting", "separate", "expected"),
    [
        (0, False, False, False),
        (0, False, True, False),
        (1, True, False, False),
        (1, False, False, True),
        (2, True, False, True),
        (1, True, True, True),
    ],
)
def test_guesses_are_sent_in_pairs_or_at_the_end_and_in_separate_at_once(
    unsent: int, drafting: bool, separate: bool, expected: bool
) -> None:
    sends = should_flush(DraftPacing(), unsent=unsent, drafting=drafting, separate=separate)

    assert sends is expected


# --- holding a pass


def waiting(**changes: object) -> Waiting:
    fields = {
        "fill": "auto", "pending": 0, "broken": True, "since_s": 0.01, "first_s": 0.03,
        "interval_s": 0.02, "pass_s": 0.2,
    }  # fmt: skip
    return Waiting(**{**fields, **changes})  # type: ignore[arg-type]


HOLDS = {
    "drafts are about to arrive": (waiting(), 0.03 + 4 * 0.02 - 0.01),
    "one has come": (waiting(pending=1), 0.03 + 4 * 0.02 - 0.01),
    "enough have come": (waiting(pending=HOLD_DRAFTS), 0.0),
    "the chain stands": (waiting(broken=False), 0.0),
    "always": (waiting(fill="always"), 0.0),
    "never, and none pending": (waiting(fill="never"), inf),
    "never, one pending": (waiting(fill="never", pending=1), 0.0),
    "they are far": (waiting(first_s=0.11), 0.0),
    "nothing is known": (waiting(first_s=0.0), 0.0),
    "they are overdue": (waiting(since_s=1.0), 0.0),
}


@pytest.mark.parametrize(("session", "expected"), HOLDS.values(), ids=HOLDS)
def test_a_pass_is_held_only_for_drafts_worth_waiting_for(
    session: Waiting, expected: float
) -> None:
    assert hold(session) == pytest.approx(expected)


@given(SECONDS, SECONDS, SECONDS, SECONDS, st.integers(0, 5), SECONDS)
def test_a_held_pass_starts_in_the_end_and_never_later_for_more_drafts(
    since_s: float,
    first_s: float,
    interval_s: float,
    pass_s: float,
    pending: int,
    later_s: float,
) -> None:
    def asked(pending: int, since_s: float) -> float:
        return hold(
            waiting(
                pending=pending,
                since_s=since_s,
                first_s=first_s,
                interval_s=interval_s,
                pass_s=pass_s,
            )
        )

    now_s = asked(pending, since_s)
    assert 0.0 <= now_s < inf
    assert asked(pending + 1, since_s) <= now_s
    assert asked(pending, since_s + later_s) <= now_s
    assert asked(pending, since_s + now_s) == pytest.approx(0.0, abs=1e-9)


def test_arrivals_learn_how_soon_drafts_follow_a_broken_chain() -> None:
    seen = Arrivals()

    seen.came(0.5, 2)
    seen.broke(1.0)
    seen.came(1.4, 1)
    seen.came(1.6, 2)

    assert seen.first_s == pytest.approx(0.4)
    assert seen.interval_s == pytest.approx(0.1)


def test_arrivals_move_slowly() -> None:
    seen = Arrivals()
    for broke, came in ((0.0, 0.4), (10.0, 10.8)):
        seen.broke(broke)
        seen.came(came, 1)

    assert seen.first_s == pytest.approx(0.5)
