"""When to draft, send, verify: tables of cases, and what must never go the wrong way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculation.budget import PassTimes
from speculation.judging import Judgement
from speculation.messages import Draft, Limits, Open, Sampling
from speculation.pacing import (
    HOLD_DRAFTS,
    LONGEST_REST,
    PATIENCE,
    Arrivals,
    DraftPacing,
    Waiting,
    hold,
    may_draft,
    receive,
    rest,
    should_flush,
    starters,
    window,
)
from speculation.verifying import VerifyingSession

LIMITS = Limits(max_verify=16, max_ahead=64)
SECONDS = st.floats(0.0, 10.0)


@pytest.mark.parametrize(
    ("rtt_s", "pass_s", "draft_s", "tokens"),
    [
        (0.0, 0.0, 0.01, 64),
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
        may_draft(
            DraftPacing(), survival=survival, unverified=unverified, room=10, resting=False
        )
        is expected
    )


@pytest.mark.parametrize(
    ("misses", "tokens"),
    [(0, 0), (PATIENCE - 1, 0), (PATIENCE, 1), (PATIENCE + 3, 8), (10**6, LONGEST_REST)],
)
def test_the_rest_doubles_with_each_miss_beyond_the_patience(misses: int, tokens: int) -> None:
    assert rest(misses) == tokens


@pytest.mark.parametrize("rests", [True, False])
def test_a_resting_edge_drafts_nothing_unless_it_never_rests(rests: bool) -> None:
    pacing = DraftPacing(rests=rests)

    drafts = may_draft(pacing, survival=1.0, unverified=0, room=10, resting=True)

    assert drafts is not rests


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


def times(first_s: float = 0.2, row_s: float = 0.002) -> PassTimes:
    """T(1) to T(17): one row more costs row_s."""
    learned = PassTimes()
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
    "a few are overtaken": (waiting(acceptance=0.9, due_s=0.0, interval_s=0.01, behind=1), 0.02),
    "most are overtaken": (waiting(acceptance=0.9, due_s=0.0, interval_s=0.01, behind=8), 0.0),
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
    assert hold(replace(session, due_s=due_s + 20 * pass_s)) == 0.0
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


@dataclass
class Text:
    """What Arrivals look at of a session."""

    length: int = 0
    wrong_at: int | None = None
    reach: int = 0

    @property
    def committed(self) -> range:
        return range(self.length)

    @property
    def broken(self) -> bool:
        return self.wrong_at is not None

    def into(self, seen: Arrivals, now: float, wrong_at: int | None = None) -> None:
        """Grow by a token that is sent now."""
        self.length, self.wrong_at = self.length + 1, wrong_at
        seen.committed(cast("VerifyingSession", self), now)

    def behind(self, seen: Arrivals) -> int:
        return seen.behind(cast("VerifyingSession", self))


def test_arrivals_learn_how_soon_drafts_follow_a_broken_chain() -> None:
    seen, text = Arrivals(), Text()

    seen.came(0.5, 2)
    text.into(seen, 1.0, wrong_at=0)
    seen.came(1.4, 1)
    assert seen.restart_s == pytest.approx(0.4)
    seen.came(1.6, 2)

    assert seen.first_s == pytest.approx(0.4)
    assert seen.interval_s == pytest.approx(0.1)
    assert seen.restart_s == pytest.approx(0.5)


def test_arrivals_move_slowly_and_pauses_hardly_count() -> None:
    seen, text = Arrivals(), Text()
    for broke, came in ((0.0, 0.4), (10.0, 90.0)):  # the edge rested
        text.into(seen, broke, wrong_at=text.length)
        seen.came(came, 1)
    seen.came(90.1, 1)
    seen.came(160.0, 1)

    assert seen.first_s == pytest.approx(0.5)
    assert seen.interval_s == pytest.approx(0.125)


def test_a_chain_found_wrong_late_was_given_up_with_the_commit_that_says_so() -> None:
    seen, text = Arrivals(first_s=0.3, interval_s=0.01), Text()
    for now in (1.0, 1.1, 1.2):
        text.into(seen, now)
    seen.came(1.25, 1)

    seen.broke(position=1)

    assert seen.due_s(1.25) == pytest.approx(1.1 + 0.3 - 1.25)
    assert text.behind(seen) == 1  # it begins after two tokens, and there are three


def test_drafts_that_the_text_overtook_are_behind_it() -> None:
    seen, text = Arrivals(first_s=0.3, interval_s=0.1), Text(reach=2)
    seen.came(0.0, 2)
    text.into(seen, 0.1)
    text.into(seen, 0.15)
    assert text.behind(seen) == 0
    text.into(seen, 0.2)
    assert text.behind(seen) == 1

    text.into(seen, 0.25, wrong_at=3)
    assert text.behind(seen) == 0
    text.into(seen, 0.3)
    assert text.behind(seen) == 1


def test_a_commit_wakes_an_edge_that_has_paused() -> None:
    seen, text = Arrivals(first_s=0.4, interval_s=0.1), Text()
    seen.came(0.5, 1)
    text.into(seen, 0.6)  # drafts still come: it tells nothing
    assert seen.due_s(0.6) == pytest.approx(0.0)
    text.into(seen, 1.0)  # none has come for five intervals
    assert seen.due_s(1.1) == pytest.approx(0.3)
    text.into(seen, 1.2)  # the edge was awake already
    assert seen.due_s(1.3) == pytest.approx(0.1)
    seen.came(1.3, 2)

    assert seen.first_s == pytest.approx(0.4)  # it may have been on its way before
    assert seen.due_s(1.35) == pytest.approx(0.05)


def test_who_never_woke_an_edge_learns_from_the_first_time() -> None:
    seen, text = Arrivals(interval_s=0.1), Text()
    seen.came(0.2, 1)
    text.into(seen, 1.0)
    assert seen.due_s(1.1) == inf
    seen.came(1.3, 1)

    assert seen.first_s == pytest.approx(0.3)


def test_drafts_that_were_there_before_a_commit_do_not_answer_it() -> None:
    seen, text = Arrivals(first_s=0.4, interval_s=0.1), Text()
    seen.came(0.5, 1)
    text.into(seen, 1.0)

    seen.came(0.7, 1)  # heard of after the pass that was running

    assert seen.first_s == pytest.approx(0.4)
    assert seen.due_s(0.75) == pytest.approx(0.7 + seen.interval_s - 0.75)


def test_the_next_draft_is_due_when_the_last_ones_say_so() -> None:
    seen, text = Arrivals(), Text()
    assert seen.due_s(0.0) == inf

    text.into(seen, 0.0, wrong_at=0)
    assert seen.due_s(0.1) == inf
    seen.came(0.4, 1)
    assert seen.due_s(0.5) == inf
    seen.came(0.6, 2)

    assert seen.due_s(0.65) == pytest.approx(0.05)
    assert seen.due_s(0.75) == pytest.approx(-0.05)
    assert seen.due_s(0.9) == inf  # so late that none is coming
    text.into(seen, 1.0, wrong_at=1)
    assert seen.due_s(1.1) == pytest.approx(0.3)


def test_a_message_taken_in_is_noted_with_the_time_it_came() -> None:
    request = Open(
        model="m", vocabulary="v", prompt=(1,), sampling=Sampling(), seed=0, max_tokens=9,
        stop_tokens=(), fill="always",
    )  # fmt: skip
    session, seen = VerifyingSession(request, LIMITS, vocabulary_size=50), Arrivals()
    for at, token in enumerate((5, 6)):
        session.begin(0)
        session.resolve(Judgement((token,), 0))
        seen.committed(session, float(at))

    receive(session, seen, Draft(0, 0, 0, (5,)), arrived=2.0)
    receive(session, seen, Draft(0, 0, 0, (5,)), arrived=2.5)  # twice: it says nothing
    receive(session, seen, Draft(0, 1, 1, (7,)), arrived=3.0)  # wrong: known from the second
    receive(session, seen, Draft(1, 2, 0, (8,)), arrived=4.0)

    assert seen.interval_s == pytest.approx(1.0)
    assert seen.first_s == pytest.approx(4.0 - 1.0)
