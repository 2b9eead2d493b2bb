"""Rows go where they earn most tokens a second, and never over what there is."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picospec.speculation.verifying.latency import TRIED_ROWS, PassLatency
from picospec.speculation.verifying.row_allocation import allocate, best_rate
from tests.speculation.verifiers import latency


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


def test_all_drafts_are_judged_where_rows_are_free() -> None:
    assert allocate(gains([4], [0.5]), latency(1, 1, 1, 1, 1), rows=16) == [4]


def test_no_draft_is_judged_where_rows_cost_more_than_they_earn() -> None:
    assert allocate(gains([4], [0.5]), latency(1, 2, 3, 4, 5), rows=16) == [0]


@pytest.mark.parametrize(("acceptance", "judged"), [(0.64, 0), (0.66, 1)])
def test_a_gain_within_the_error_of_its_estimate_counts_as_none(
    acceptance: float, judged: int
) -> None:
    assert allocate(gains([1], [acceptance]), latency(1.0, 1.5), rows=16) == [judged]


def test_for_fewest_passes_all_drafts_are_judged_whatever_they_cost() -> None:
    costs = latency(1, 2, 3, 4, 5)

    assert allocate(gains([2, 1], [0.5, 0.1]), costs, rows=16, judge_all=True) == [2, 1]
    assert allocate(gains([2, 1], [0.5, 0.1]), costs, rows=4, judge_all=True) == [2, 0]


def test_a_session_with_useless_drafts_costs_the_others_nothing() -> None:
    costs = latency(1.0, 1.1, 1.4, 1.7, 2.0, 2.3, 2.6)

    assert allocate(gains([2, 3], [0.9, 0.01]), costs, rows=16) == [2, 0]


def test_the_likeliest_drafts_get_the_rows_there_are() -> None:
    flat = latency(1, 1, 1)

    assert allocate(gains([3, 3], [0.9, 0.5]), flat, rows=5) == [3, 0]
    assert allocate(gains([3, 3], [0.9, 0.9]), flat, rows=2) == [0, 0]


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
    flat, dear = latency(0.2, 0.2, 0.2), latency(0.2, 0.4, 0.6)

    assert best_rate(0.5, flat, 2) == pytest.approx(1.75 / 0.2, rel=0.01)
    assert best_rate(0.5, dear, 2) == pytest.approx(1 / 0.2, rel=0.01)
    assert best_rate(0.5, PassLatency(), 2) == inf


def test_a_chain_that_begins_again_slowly_brings_the_rate_towards_the_target_alone() -> None:
    flat = latency(0.2, 0.2)

    rates = [best_rate(0.5, flat, 1, restart_s=restart_s) for restart_s in (0.0, 0.1, 100.0)]

    assert rates == sorted(rates, reverse=True)
    assert rates[1] == pytest.approx((1.5 + 0.05 / 0.2) / 0.25, rel=0.01)
    assert rates[2] == pytest.approx(1 / 0.2, rel=0.01)
