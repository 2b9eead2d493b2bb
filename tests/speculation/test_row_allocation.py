"""Rows go where they earn most tokens a second, and never over what there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picospec.speculation.judge import Judgement
from picospec.speculation.latency import TRIED_ROWS, PassLatency, measured
from picospec.speculation.messages import Draft, Limits
from picospec.speculation.pass_policy import allocate, best_rate
from picospec.speculation.verify_machine import Verdict, VerifyMachine
from tests.speculation.verifiers import V, counting, latency, opening


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


def test_a_chain_that_begins_again_slowly_brings_the_rate_towards_the_target_alone() -> None:
    flat = latency(0.2, 0.2)

    rates = [best_rate(0.5, flat, 1, restart_s=restart_s) for restart_s in (0.0, 0.1, 100.0)]

    assert rates == sorted(rates, reverse=True)
    assert rates[1] == pytest.approx((1.5 + 0.05 / 0.2) / 0.25, rel=0.01)
    assert rates[2] == pytest.approx(1 / 0.2, rel=0.01)


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
        verifier.ran(plan, {"a": verdict}, now, rows=taken)
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
