"""How long passes take is learned, and decides how long one is held and who gets its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculation.arrivals import MAX_COMMITS, MIN_INTERVAL_S, Arrivals
from speculation.judge import Judgement
from speculation.latency import (
    FORGET_AFTER,
    MAX_SAMPLES,
    MEASURE_S,
    MIN_SAMPLES,
    TRIED_ROWS,
    OutcomeCost,
    PassLatency,
    measured,
)
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
from speculation.verify_machine import PassRecord, Verdict, VerifyMachine
from tests.speculation.verifiers import V, counting, latency, opening

ONCE = [(9, 50.0), *[(1, 1.0)] * (FORGET_AFTER - 2)]

LEARNED: dict[str, tuple[list[tuple[int, float]], dict[int, float]]] = {
    "nothing": ([], {3: 0.0}),
    "it never falls with rows": ([(1, 1.0), (2, 9.0), (3, 2.0)], {1: 1.0, 2: 2.0, 4: 2.0}),
    "a size below those seen": ([(5, 1.0)], {1: 0.2, 5: 1.0, 9: 1.0}),
    "a size between those seen": ([(5, 1.0), (1, 0.6), (9, 0.8)], {1: 0.6, 3: 0.7, 7: 0.8}),
    "a pause is not a slow host": (
        [*[(1, 1.0), (2, 1.0)] * MAX_SAMPLES, (1, 100.0)],
        {1: 1.5, 2: 1.5},
    ),
    "a size seen once is known for so many passes": (ONCE, {9: 50.0}),
    "and then it is forgotten": ([*ONCE, (1, 1.0)], {1: 1.0, 9: 1.0}),
    "a size seen more often is known for long": (
        [*[(17, 0.4)] * MIN_SAMPLES, *[(1, 0.2)] * 1000],
        {17: 0.4},
    ),
    "a size clearly dearer than a larger one counts as it is": (
        [*[(4, 0.16), (1, 0.21)] * MIN_SAMPLES, *[(1, 0.21)] * 300],
        {1: 0.21, 2: 0.16},
    ),
    "one slow pass does not count against a size": ([(4, 0.16), (1, 0.9)], {1: 0.16}),
    "brief passes differ by noise alone": (
        [(9, 0.006), (4, 0.0069)] * MIN_SAMPLES,
        {4: 0.006, 9: 0.006},
    ),
}
"""Passes of so many rows that took so many seconds, and what is expected of these rows."""


@pytest.mark.parametrize(("passes", "expected"), LEARNED.values(), ids=LEARNED)
def test_the_time_of_a_pass_is_learned_by_its_rows(
    passes: list[tuple[int, float]], expected: dict[int, float]
) -> None:
    learned = PassLatency()
    for rows, seconds in passes:
        learned.observe(rows, seconds)

    assert {rows: learned.of(rows) for rows in expected} == pytest.approx(expected, rel=0.01)


def timed(pass_s: Callable[[int], float], max_verify: int) -> tuple[list[int], PassLatency]:
    """Return the rows of the passes timed before the first session, and what is known then."""
    asked: list[int] = []

    def run(rows: int) -> float:
        asked.append(rows)
        return pass_s(rows)

    learned = measured(run, max_verify)
    return asked[1:], learned  # the first is for the weights alone


def test_before_the_first_session_passes_of_ever_more_rows_are_timed() -> None:
    asked, learned = timed(lambda rows: 0.1 + 0.01 * rows, 16)

    assert asked == [1, 2, 3, 5, 9, 17, *[1, 17] * (MIN_SAMPLES - 1)]
    assert [learned.of(rows) for rows in (1, 3, 17)] == pytest.approx([0.11, 0.13, 0.27])
    assert timed(lambda rows: 0.1, 1)[0] == [1, 2] * MIN_SAMPLES


def test_the_size_with_most_rows_a_second_is_timed_again_and_no_pass_once_time_is_up() -> None:
    costly, _ = timed(lambda rows: 0.1 if rows < 9 else 0.9, 16)
    slow, _ = timed(lambda rows: 0.3 * rows, 32)
    jump, _ = timed(lambda rows: MEASURE_S if rows >= 9 else 0.3, 32)

    assert costly == [1, 2, 3, 5, 9, 17, *[1, 5, 17] * (MIN_SAMPLES - 1)]
    assert slow == [1, 2, 3, 5, 9, 17]
    assert jump == [1, 2, 3, 5, 9]


def test_a_host_that_slows_down_does_so_for_every_size() -> None:
    learned = PassLatency()
    for _ in range(MAX_SAMPLES):
        for rows, seconds in enumerate((1.0, 1.2, 1.4), 1):
            learned.observe(rows, seconds)
    for _ in range(20):
        learned.observe(1, 1.5)

    assert [learned.of(rows) for rows in (1, 2, 3)] == pytest.approx([1.5, 1.8, 2.1], rel=0.06)


def test_sizes_not_seen_for_long_are_known_still_on_a_host_that_pauses() -> None:
    learned, chance = PassLatency(), Random(1)
    for _ in range(MIN_SAMPLES):
        learned.observe(1, 0.2)
        learned.observe(17, 0.4)
    for _ in range(2000):
        learned.observe(1, 0.2 + chance.expovariate(1 / 0.02))

    assert learned.of(1) == pytest.approx(0.22, rel=0.1)
    assert learned.of(17) == pytest.approx(0.44, rel=0.15)


def test_a_size_that_was_dear_twice_stays_dear() -> None:
    learned, known = latency(1.0), []
    for _ in range(3):
        learned.observe(9, 40.0)
        for _ in range(FORGET_AFTER - 1):
            learned.observe(1, 1.0)
        known.append(learned.of(9) > 30.0)

    assert known == [False, True, True]


@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=20), st.integers(1, 30))
def test_a_larger_pass_is_never_expected_sooner(seconds: list[float], rows: int) -> None:
    learned = latency(*seconds)

    assert learned.of(rows) <= learned.of(rows + 1)


def test_a_pass_that_also_reads_a_prompt_shows_that_its_rows_are_cheap() -> None:
    """On a busy host no pass may be without a prompt."""
    learned = latency(*[0.01] * 33)
    assert learned.max_rows(8) == 66

    learned.observe_with_prompt(66, 0.09)  # nothing is known: the prompt may have taken it
    assert learned.max_rows(8) == 66
    learned.observe_with_prompt(66, 0.02)

    assert learned.max_rows(8) == 132
    assert learned.of(66) == pytest.approx(0.01)


def test_passes_with_draft_tokens_are_learned_apart_where_both_kinds_are_known() -> None:
    learned = PassLatency()
    for _ in range(MIN_SAMPLES):
        for rows in (40, 60, 64):
            learned.observe(rows, 0.008)
    assert learned.of(64, with_drafts=True) == pytest.approx(0.008)
    for _ in range(MIN_SAMPLES):
        for rows in (44, 64, 80):
            learned.observe(rows, 0.012, with_drafts=True)

    assert [learned.of(rows) for rows in (44, 64, 80)] == pytest.approx([0.008, 0.008, 0.008])
    assert learned.of(62, with_drafts=True) == pytest.approx(0.012)
    assert learned.with_drafts(60, 4) == pytest.approx([0.008, *[0.012] * 4])
    assert learned.learned_statistics()["64 with drafts"] == pytest.approx(0.012)


def test_what_it_costs_to_wait_for_an_outcome_is_learned_and_tried_again() -> None:
    cost = OutcomeCost()
    assert cost.of(0.008) == 0.004
    for seconds, ahead in ((0.0085, True), (0.0115, False)) * 30:
        cost.observe(seconds, 0.008, ahead=ahead)
    assert cost.of(0.008) == pytest.approx(0.003, rel=0.1)
    for ahead, expected in ((True, 0.0), (False, 0.008)):
        for _ in range(2000):
            cost.observe(0.0085 if ahead else 0.0115, 0.008, ahead=ahead)
        assert cost.of(0.008) == pytest.approx(expected, abs=0.0005)


# How long to hold a pass: a table of cases, and what must never go the wrong way.


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


# What the verifier learns from the times at which drafts come.

KNOWN = {"first_s": 0.4, "interval_s": 0.1}
CLOSE = {"first_s": 0.3, "interval_s": 0.01}

ARRIVALS: dict[str, tuple[dict[str, float], list[tuple[Any, ...]]]] = {
    "how soon draft tokens follow a broken chain": ({}, [
        ("drafts", 0.5, 2), ("commit", 1.0, 0), ("drafts", 1.4, 1), ("drafts", 1.6, 2),
        ("first", 0.4), ("interval", 0.1),
    ]),
    "what is learned moves slowly, and a pause hardly counts": ({}, [
        ("commit", 0.0, 0), ("drafts", 0.4, 1), ("commit", 10.0, 1), ("drafts", 90.0, 1),
        ("drafts", 90.1, 1), ("drafts", 160.0, 1),
        ("first", 0.5), ("interval", 0.1 * (1 + 3 / 4)),
    ]),
    "an edge that pauses is awaited once a Commit has woken it": (KNOWN, [
        ("drafts", 0.5, 1), ("pause", 0), ("due", 0.5, inf),
        ("commit", 0.6), ("due", 0.6, 0.4),
        ("drafts", 1.0, 1), ("interval", 0.1), ("due", 1.0, 0.1),
    ]),
    "an edge that wakes goes on where its chain ends": (KNOWN, [
        ("drafts", 0.5, 3), ("pause", 0),
        ("commit", 0.6), ("commit", 0.8), ("commit", 1.0), ("commit", 1.2),
        ("lag", 3, 1),  # it knows of one token, and has drafted two after it
    ]),
    "a chain found wrong late was given up with the Commit that says so": (CLOSE, [
        ("commit", 1.0), ("commit", 1.1), ("commit", 1.2), ("drafts", 1.25, 1),
        ("broke", 1), ("due", 1.25, 1.1 + 0.3 - 1.25),
        ("lag", 0, 1),  # it begins after two tokens, and there are three
    ]),
    "draft tokens that the text overtook are behind it": (KNOWN, [
        ("drafts", 0.0, 2), ("commit", 0.1), ("commit", 0.15), ("lag", 2, 0),
        ("commit", 0.2), ("lag", 2, 1), ("commit", 0.25, 3), ("lag", 2, 0),
        ("commit", 0.3), ("lag", 2, 1),
    ]),
    "a Commit wakes an edge of which none has come for five intervals": (KNOWN, [
        ("drafts", 0.5, 1), ("commit", 0.6), ("due", 0.6, 0.0),  # drafts still come
        ("commit", 1.0), ("due", 1.1, 0.3),
        ("commit", 1.2), ("due", 1.3, 0.1),  # the edge was awake already
        ("drafts", 1.3, 2), ("first", 0.4), ("due", 1.35, 0.05),
    ]),
    "who never woke an edge learns from the first time": ({"interval_s": 0.1}, [
        ("drafts", 0.2, 1), ("commit", 1.0), ("due", 1.1, inf),
        ("drafts", 1.3, 1), ("first", 0.3),
    ]),
    "draft tokens that were there before a Commit do not answer it": (KNOWN, [
        ("drafts", 0.5, 1), ("commit", 1.0),
        ("drafts", 0.7, 1),  # taken in after the pass that was running
        ("first", 0.4), ("interval", 0.125), ("due", 0.75, 0.7 + 0.125 - 0.75),
    ]),
    "the next one is due when the last ones say so": ({}, [
        ("due", 0.0, inf), ("commit", 0.0, 0), ("due", 0.1, inf),
        ("drafts", 0.4, 1), ("due", 0.5, inf),
        ("drafts", 0.6, 2), ("due", 0.65, 0.05), ("due", 0.75, -0.05),
        ("due", 0.9, inf),  # so late that none is coming
        ("commit", 1.0, 1), ("due", 1.1, 0.3),
    ]),
    "the oldest Commits are forgotten": (CLOSE, [
        *(("commit", float(number)) for number in range(MAX_COMMITS + 1)),
        ("broke", 0), ("due", 1.0, 0.3),
    ]),
    "only those further apart than the least interval tell a pace": ({}, [
        ("drafts", 0.0, 1), ("drafts", MIN_INTERVAL_S, 1), ("interval", 0.0),
        ("drafts", 3 * MIN_INTERVAL_S, 1), ("interval", 2 * MIN_INTERVAL_S),
    ]),
    "one that comes with the Commit is the first to answer it": (KNOWN, [
        ("commit", 1.0, 0), ("drafts", 1.0, 1), ("first", 0.3),
    ]),
    "one is expected until two intervals after its time": ({"interval_s": 1.0}, [
        ("drafts", 0.0, 1), ("due", 3.0, -2.0), ("due", 3.001, inf),
    ]),
    "a chain found wrong before any Commit awaits none": (KNOWN, [
        ("broke", 0), ("due", 0.0, inf),
    ]),
}  # fmt: skip
"""What is known, and what happens in turn. A Commit has a time, and where the chain was wrong.
What is expected: `due` of a time, `lag` of where the chain ends, and what was learned."""


@pytest.mark.parametrize(("known", "events"), ARRIVALS.values(), ids=ARRIVALS)
def test_arrivals_tell_when_the_next_draft_token_is_due(
    known: dict[str, float], events: list[tuple[Any, ...]]
) -> None:
    seen, length = Arrivals(**known), 0
    for event, *values in events:
        match event:
            case "commit":
                length += 1
                seen.committed(length, *values)
            case "drafts":
                seen.drafts_arrived(*values)
            case "pause":
                seen.paused(*values)
            case "broke":
                seen.chain_broke(*values)
            case "due":
                assert seen.due_s(values[0]) == pytest.approx(values[1])
            case "lag":
                assert seen.lag_tokens(length, values[0]) == values[1]
            case _:
                assert getattr(seen, f"{event}_s") == pytest.approx(values[0])


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
