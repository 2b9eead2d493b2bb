"""How long to hold a pass: a table of cases, and what must never go the wrong way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculation.arrivals import MAX_COMMITS, MIN_INTERVAL_S, Arrivals
from speculation.judge import Judgement
from speculation.latency import TRIED_ROWS, PassLatency, measured
from speculation.messages import Draft
from speculation.model_facts import Limits
from speculation.pass_policy import (
    MAX_AWAITED,
    Calibration,
    Waiting,
    accepted_after,
    allocate,
    best_rate,
    draft_wait_s,
)
from speculation.verify_machine import PassRecord, Verdict, VerifyMachine, _Observed
from tests.speculation import verifiers
from tests.speculation.verifiers import V, counting, latency, opening

SECONDS = st.floats(0.0, 10.0)


def sloping(first_s: float = 0.2, row_s: float = 0.002) -> PassLatency:
    """T(1) to T(17): one row more costs row_s."""
    return latency(*(first_s + row_s * rows for rows in range(1, 18)))


def case(**changes: object) -> Waiting:
    fields = {
        "fill": "auto", "pending": 0, "acceptance": 0.8, "due_s": 0.03, "lag_tokens": 0,
        "interval_s": 0.02,
    }  # fmt: skip
    return Waiting(**{**fields, **changes})  # type: ignore[arg-type]


DRAFT_WAITS = {
    "draft tokens are about to arrive": (case(), 0.07),
    "one has come, more will": (case(pending=1, due_s=0.01), 0.05),
    "one more is worth it": (case(pending=MAX_AWAITED - 1, due_s=0.01), 0.05),
    "enough have come": (case(pending=MAX_AWAITED, due_s=0.01), 0.0),
    "none is expected": (case(due_s=inf), 0.0),
    "always": (case(fill="always"), 0.0),
    "never, and none pending": (case(fill="never"), inf),
    "never, one pending": (case(fill="never", pending=1), 0.0),
    "they are far": (case(due_s=0.5), 0.0),
    "one is overtaken": (case(acceptance=0.9, due_s=0, interval_s=0.01, lag_tokens=1), 0.02),
    "many are overtaken": (case(acceptance=0.9, due_s=0, interval_s=0.01, lag_tokens=8), 0.0),
    "they are useless": (case(acceptance=0.01), 0.0),
    "they come too late to earn the wait": (case(due_s=0.1), 0.0),
    "the draft token is late": (case(due_s=-0.04), 0.0),
    "the draft token is a little late": (case(due_s=-0.03), 0.01),
}


@pytest.mark.parametrize(("session", "expected"), DRAFT_WAITS.values(), ids=DRAFT_WAITS)
def test_a_pass_is_held_only_for_draft_tokens_worth_waiting_for(
    session: Waiting, expected: float
) -> None:
    assert draft_wait_s(session, sloping(), 16) == pytest.approx(expected)


EXPECTED = {
    "none is expected": (case(due_s=inf), (), 0, 0.0),
    "one is due after the pass": (case(due_s=0.3), (), 0, 0.0),
    "one is due, for the position under way": (case(due_s=0.15, interval_s=0.2), (), 0, 0.0),
    "the one after it is due as well": (case(due_s=0.15, interval_s=0.04), (), 0, 0.64),
    "one is overdue": (case(due_s=-0.01, interval_s=0.15), (), 0, 0.0),
    "one is overtaken": (case(due_s=0, interval_s=0.1, lag_tokens=1), (), 0, 0.512),
    "one has come for that position": (case(pending=1, due_s=inf), (0.8,), 0, 0.0),
    "one has come, and the next is due": (case(pending=1, interval_s=0.2), (0.8,), 0, 0.64),
    "one more has come": (case(pending=2, due_s=inf), (0.8, 0.64), 0, 0.64),
    "two are being judged": (case(pending=3, due_s=inf), (0.8, 0.64, 0.512), 2, 0.0),
    "two more have come": (case(pending=4, due_s=inf), (0.8, 0.64, 0.512, 0.41), 2, 0.41),
    "the verifier has some itself": (case(due_s=inf), (0.9, 0.8), 0, 0.8),
}


@pytest.mark.parametrize(
    ("session", "gains", "judging", "expected"), EXPECTED.values(), ids=EXPECTED
)
def test_only_draft_tokens_after_the_outcome_can_be_hoped_for(
    session: Waiting, gains: tuple[float, ...], judging: int, expected: float
) -> None:
    assert accepted_after(session, gains, judging, 0.2) == pytest.approx(expected)


def test_expectations_that_came_to_nothing_are_worth_little_until_others_are_kept() -> None:
    calibration = Calibration()
    for accepted, least, most in ((2, 1.0, 1.0), (0, 0.0, 0.1), (2, 0.8, 1.0)):
        for _ in range(60):
            calibration.expect(2.0)  # by the pass after the one that runs
            calibration.passed(accepted)
        assert least <= calibration.factor <= most


def test_no_pass_is_held_where_rows_cost_as_much_as_passes() -> None:
    assert draft_wait_s(case(), sloping(0.0, 0.2), 16) == 0.0


def test_a_wait_that_earns_just_what_it_takes_is_not_worth_it() -> None:
    flat = latency(*[1.0] * 17)  # at best 2 tokens a second with one draft token a pass
    session = case(acceptance=1.0, interval_s=1.0)

    assert draft_wait_s(replace(session, due_s=0.49), flat, 1) == pytest.approx(2.49)
    assert draft_wait_s(replace(session, due_s=0.5), flat, 1) == 0.0


@given(st.floats(-1, 10), SECONDS, st.integers(0, 5), st.floats(0, 1), st.floats(0.01, 1))
def test_a_held_pass_starts_in_the_end_and_not_later_for_what_comes_later(
    due_s: float, interval_s: float, pending: int, acceptance: float, pass_s: float
) -> None:
    session = case(due_s=due_s, interval_s=interval_s, pending=pending, acceptance=acceptance)
    learned = sloping(pass_s)

    waited_s = draft_wait_s(session, learned, 16)

    later = replace(session, due_s=max(0.0, due_s) + 20 * pass_s)
    assert 0.0 <= waited_s < inf
    assert draft_wait_s(later, learned, 16) == 0.0
    assert draft_wait_s(replace(session, due_s=due_s - waited_s), learned, 16) <= waited_s


def test_what_decides_is_read_from_the_session_and_its_arrivals() -> None:
    session = verifiers.session()
    arrivals = Arrivals(first_s=0.4, interval_s=0.1)
    session.receive(Draft(0, 0, 0, (1, 2)))
    arrivals.drafts_arrived(1.0, 2)

    found = _Observed(session, 0.0, arrivals=arrivals).waiting(1.04)

    assert found == Waiting("auto", 2, 0.9, pytest.approx(0.06), 0, 0.1)


# What the verifier learns from the times at which drafts come.


class Text:
    """A text that grows, and where its chain ends."""

    def __init__(self, reach: int = 0) -> None:
        self.length, self._reach = 0, reach

    def into(self, seen: Arrivals, now: float, wrong_at: int | None = None) -> None:
        """Grow by a token that is sent now."""
        self.length += 1
        seen.committed(self.length, now, wrong_at)

    def lag_tokens(self, seen: Arrivals) -> int:
        return seen.lag_tokens(self.length, self._reach)


def test_arrivals_learn_how_soon_drafts_follow_a_broken_chain() -> None:
    seen, text = Arrivals(), Text()

    seen.drafts_arrived(0.5, 2)
    text.into(seen, 1.0, wrong_at=0)
    seen.drafts_arrived(1.4, 1)
    seen.drafts_arrived(1.6, 2)

    assert seen.first_s == pytest.approx(0.4)
    assert seen.interval_s == pytest.approx(0.1)


def test_arrivals_move_slowly_and_pauses_hardly_count() -> None:
    seen, text = Arrivals(), Text()
    for broke, came in ((0.0, 0.4), (10.0, 90.0)):  # the edge paused
        text.into(seen, broke, wrong_at=text.length)
        seen.drafts_arrived(came, 1)
    seen.drafts_arrived(90.1, 1)
    seen.drafts_arrived(160.0, 1)

    assert seen.first_s == pytest.approx(0.5)
    assert seen.interval_s == pytest.approx(0.1 * (1 + 3 / 4))


def test_an_edge_that_pauses_is_not_waited_for() -> None:
    seen, text = Arrivals(first_s=0.4, interval_s=0.1), Text()
    seen.drafts_arrived(0.5, 1)
    seen.paused(known=0)
    assert seen.due_s(0.5) == inf

    text.into(seen, 0.6)
    assert seen.due_s(0.6) == pytest.approx(0.4)  # this Commit wakes it
    seen.drafts_arrived(1.0, 1)
    assert seen.interval_s == pytest.approx(0.1)  # the pause is no interval
    assert seen.due_s(1.0) == pytest.approx(0.1)


def test_an_edge_that_wakes_goes_on_where_its_chain_ends() -> None:
    seen, text = Arrivals(first_s=0.4, interval_s=0.1), Text(reach=3)
    seen.drafts_arrived(0.5, 3)
    seen.paused(known=0)
    for sent_at in (0.6, 0.8, 1.0, 1.2):
        text.into(seen, sent_at)

    assert text.lag_tokens(seen) == 1  # it knows of one token, and has drafted two after it


def test_a_chain_found_wrong_late_was_given_up_with_the_commit_that_says_so() -> None:
    seen, text = Arrivals(first_s=0.3, interval_s=0.01), Text()
    for sent_at in (1.0, 1.1, 1.2):
        text.into(seen, sent_at)
    seen.drafts_arrived(1.25, 1)

    seen.chain_broke(position=1)

    assert seen.due_s(1.25) == pytest.approx(1.1 + 0.3 - 1.25)
    assert text.lag_tokens(seen) == 1  # it begins after two tokens, and there are three


def test_drafts_that_the_text_overtook_are_behind_it() -> None:
    seen, text = Arrivals(first_s=0.3, interval_s=0.1), Text(reach=2)
    seen.drafts_arrived(0.0, 2)
    text.into(seen, 0.1)
    text.into(seen, 0.15)
    assert text.lag_tokens(seen) == 0
    text.into(seen, 0.2)
    assert text.lag_tokens(seen) == 1

    text.into(seen, 0.25, wrong_at=3)
    assert text.lag_tokens(seen) == 0
    text.into(seen, 0.3)
    assert text.lag_tokens(seen) == 1


def test_a_commit_wakes_an_edge_that_has_paused() -> None:
    seen, text = Arrivals(first_s=0.4, interval_s=0.1), Text()
    seen.drafts_arrived(0.5, 1)
    text.into(seen, 0.6)  # drafts still come: none is awaited
    assert seen.due_s(0.6) == pytest.approx(0.0)
    text.into(seen, 1.0)  # none has come for five intervals
    assert seen.due_s(1.1) == pytest.approx(0.3)
    text.into(seen, 1.2)  # the edge was awake already
    assert seen.due_s(1.3) == pytest.approx(0.1)
    seen.drafts_arrived(1.3, 2)

    assert seen.first_s == pytest.approx(0.4)  # it may have been on its way before
    assert seen.due_s(1.35) == pytest.approx(0.05)


def test_who_never_woke_an_edge_learns_from_the_first_time() -> None:
    seen, text = Arrivals(interval_s=0.1), Text()
    seen.drafts_arrived(0.2, 1)
    text.into(seen, 1.0)
    assert seen.due_s(1.1) == inf
    seen.drafts_arrived(1.3, 1)

    assert seen.first_s == pytest.approx(0.3)


def test_drafts_that_were_there_before_a_commit_do_not_answer_it() -> None:
    seen, text = Arrivals(first_s=0.4, interval_s=0.1), Text()
    seen.drafts_arrived(0.5, 1)
    text.into(seen, 1.0)

    seen.drafts_arrived(0.7, 1)  # taken in after the pass that was running

    assert seen.first_s == pytest.approx(0.4)
    assert seen.due_s(0.75) == pytest.approx(0.7 + seen.interval_s - 0.75)


def test_the_next_draft_is_due_when_the_last_ones_say_so() -> None:
    seen, text = Arrivals(), Text()
    assert seen.due_s(0.0) == inf

    text.into(seen, 0.0, wrong_at=0)
    assert seen.due_s(0.1) == inf
    seen.drafts_arrived(0.4, 1)
    assert seen.due_s(0.5) == inf
    seen.drafts_arrived(0.6, 2)

    assert seen.due_s(0.65) == pytest.approx(0.05)
    assert seen.due_s(0.75) == pytest.approx(-0.05)
    assert seen.due_s(0.9) == inf  # so late that none is coming
    text.into(seen, 1.0, wrong_at=1)
    assert seen.due_s(1.1) == pytest.approx(0.3)


def test_the_oldest_commits_are_forgotten() -> None:
    seen, text = Arrivals(first_s=0.3, interval_s=0.01), Text()
    for number in range(MAX_COMMITS + 1):
        text.into(seen, float(number))

    seen.chain_broke(position=0)

    assert seen.due_s(1.0) == pytest.approx(0.3)


def test_only_draft_tokens_further_apart_than_the_least_interval_tell_a_pace() -> None:
    seen = Arrivals()
    seen.drafts_arrived(0.0, 1)
    seen.drafts_arrived(MIN_INTERVAL_S, 1)
    assert seen.interval_s == 0.0

    seen.drafts_arrived(3 * MIN_INTERVAL_S, 1)

    assert seen.interval_s == pytest.approx(2 * MIN_INTERVAL_S)


def test_a_draft_token_that_comes_with_the_commit_is_the_first_to_answer_it() -> None:
    seen, text = Arrivals(first_s=0.4, interval_s=0.1), Text()
    text.into(seen, 1.0, wrong_at=0)

    seen.drafts_arrived(1.0, 1)

    assert seen.first_s == pytest.approx(0.3)


def test_a_draft_token_is_expected_until_two_intervals_after_its_time() -> None:
    seen = Arrivals(interval_s=1.0)
    seen.drafts_arrived(0.0, 1)

    assert seen.due_s(3.0) == -2.0
    assert seen.due_s(3.001) == inf


def test_a_chain_found_wrong_before_any_commit_awaits_none() -> None:
    seen = Arrivals(first_s=0.4, interval_s=0.1)

    seen.chain_broke(position=0)

    assert seen.due_s(0.0) == inf


# Rows go where they earn most tokens a second, and never over what there is.


def gains(pending: Sequence[int], acceptance: Sequence[float]) -> list[list[float]]:
    """Sessions with so many draft tokens each, all of which are accepted as often."""
    pairs = zip(pending, acceptance, strict=True)
    return [[a**k for k in range(1, n + 1)] for n, a in pairs]


def test_rows_double_from_pass_to_pass_unless_fewest_passes_count() -> None:
    learned, wanted = PassLatency(), gains([32], [1.0])

    for judged in ([0], [TRIED_ROWS - 1], [2 * TRIED_ROWS - 1], [32 - 1], [32]):
        assert allocate(wanted, learned, rows=64) == judged
        learned.observe(1 + judged[0], 1.0)

    assert allocate(wanted, PassLatency(), rows=64, judge_all=True) == [32]
    learned = latency(1.0)
    assert sum(allocate(gains([5] * 20, [0.9] * 20), learned, rows=200)) == 20


ALLOCATIONS = {
    "rows are free": ([4], [0.5], (1, 1, 1, 1, 1), 16, [4]),
    "rows cost more than they earn": ([4], [0.5], (1, 2, 3, 4, 5), 16, [0]),
    "a gain within the error of its estimate": ([1], [0.54], (1, 1.5), 16, [0]),
    "a gain beyond it": ([1], [0.56], (1, 1.5), 16, [1]),
    "useless draft tokens": ([2, 3], [0.9, 0.01], (1, 1.1, 1.4, 1.7, 2, 2.3, 2.6), 16, [2, 0]),
    "the likeliest get the rows there are": ([3, 3], [0.9, 0.5], (1, 1, 1), 5, [3, 0]),
    "no rows": ([3, 3], [0.9, 0.9], (1, 1, 1), 2, [0, 0]),
}


@pytest.mark.parametrize(
    ("pending", "acceptance", "seconds", "rows", "judged"),
    ALLOCATIONS.values(),
    ids=ALLOCATIONS,
)
def test_draft_tokens_are_judged_where_their_rows_earn_most(
    pending: list[int],
    acceptance: list[float],
    seconds: tuple[float, ...],
    rows: int,
    judged: list[int],
) -> None:
    assert allocate(gains(pending, acceptance), latency(*seconds), rows=rows) == judged


@pytest.mark.parametrize("others", [0, 41, 500])
def test_free_rows_are_used_beside_any_number_of_other_requests(others: int) -> None:
    """Together they gain less than a tenth of what such a pass commits."""
    learned = PassLatency()
    for rows in (1, 32, 64, 512):
        learned.observe(rows, 0.006)

    assert allocate(gains([8], [0.8]), learned, rows=1000, others=others) == [8]


def test_for_fewest_passes_all_drafts_are_judged_whatever_they_cost() -> None:
    costs = latency(1, 2, 3, 4, 5)

    assert allocate(gains([2, 1], [0.5, 0.1]), costs, rows=16, judge_all=True) == [2, 1]
    assert allocate(gains([2, 1], [0.5, 0.1]), costs, rows=4, judge_all=True) == [2, 0]


@given(
    st.lists(st.tuples(st.integers(0, 8), st.floats(0, 1)), max_size=6),
    st.lists(st.floats(0.01, 5), max_size=20),
    st.integers(0, 40),
)
def test_no_more_rows_than_there_are_and_no_more_drafts_than_pending(
    sessions: list[tuple[int, float]], seconds: list[float], rows: int
) -> None:
    counts = allocate(
        gains([pending for pending, _ in sessions], [a for _, a in sessions]),
        latency(*seconds),
        rows=rows,
    )

    assert all(0 <= n <= pending for n, (pending, _) in zip(counts, sessions, strict=True))
    assert sum(counts) <= max(0, rows - len(sessions))


@pytest.mark.parametrize(("piecewise_s", "judged"), [(0.012, 0), (0.008, 4)])
def test_one_sessions_draft_tokens_are_judged_only_if_they_cost_the_others_less(
    piecewise_s: float, judged: int
) -> None:
    """Beside 60 to 63 requests of one row, without which no pass has fewer rows."""
    learned = latency(0.008)

    for step in range(100):
        (count,) = allocate(gains([4], [0.8]), learned, rows=1024, others=60 + step % 4)
        rows, taken_s = 61 + step % 4 + count, piecewise_s if count else 0.008
        learned.observe(rows, taken_s, with_drafts=count > 0)

    assert count == judged


def test_a_size_that_was_slow_once_is_tried_again() -> None:
    learned, truth = latency(1.0, 1.1, 50.0), (1.0, 1.1, 1.2)
    judged = []

    for _ in range(5000):
        (count,) = allocate(gains([2], [0.9]), learned, rows=16)
        learned.observe(1 + count, truth[count])
        judged.append(count)

    assert judged[0] == 1
    assert judged[-100:].count(2) > 90


def test_the_best_rate_is_that_of_the_pass_that_earns_most_a_second() -> None:
    flat, costly = latency(0.2, 0.2, 0.2), latency(0.2, 0.4, 0.6)

    assert best_rate(0.5, flat, 2) == pytest.approx(1.75 / 0.2, rel=0.01)
    assert best_rate(0.5, costly, 2) == pytest.approx(1 / 0.2, rel=0.01)
    assert best_rate(0.5, PassLatency(), 2) == inf


LIMITS = Limits(max_verify=32, max_ahead=64)
PASSES = 40
"""Fewer than FORGET_AFTER, after which a dear pass is tried again."""


def judged_rows(
    verifier: VerifyMachine, pass_s: Callable[[int], float], arriving: list[int]
) -> list[int]:
    """Return the rows of each pass of a session whose draft tokens are all right. arriving: how
    many are pending at each."""
    request, now, rows = opening(fill="always", max_tokens=9999), 0.0, list[int]()
    verifier.open("a", request, LIMITS, vocabulary_size=V, now=now)
    for pending in arriving:
        start = len(verifier.session("a").committed)
        verifier.received("a", Draft(0, start, 0, (1,) * pending), arrived=now)
        (draft,) = verifier.offer(["a"], now, rows=256).start.values()
        plan, taken = verifier.begin({"a": len(draft)}, now), 1 + len(draft)
        now += pass_s(taken)
        verdict = Verdict(Judgement((*draft, 1), len(draft)))
        verifier.ran(plan, {"a": verdict}, now, PassRecord(taken))
        rows.append(taken)
    return rows


@given(
    st.integers(3, 33),
    st.floats(20.0, 50.0),
    st.lists(st.integers(1, 32), min_size=PASSES, max_size=PASSES),
)
def test_dear_rows_are_met_once_and_never_where_passes_were_timed_before(
    dear_from: int, times: float, arriving: list[int]
) -> None:
    def pass_s(rows: int) -> float:
        return 0.01 * (times if rows >= dear_from else 1.0)

    untimed = VerifyMachine(counting())
    timed = VerifyMachine(counting(), measured(pass_s, LIMITS.max_verify))

    rows = judged_rows(untimed, pass_s, arriving), judged_rows(timed, pass_s, arriving)

    assert sum(taken >= dear_from for taken in rows[0]) <= 1
    assert max(rows[1]) < dear_from
