"""Rows go where they earn most tokens a second, and never over what there is."""

from __future__ import annotations

from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculation.verifying.row_allocation import (
    ENOUGH,
    LATEST,
    PassLatency,
    best_rate,
    share,
    timed,
)


def times(*seconds: float) -> PassLatency:
    """T(1), T(2), ..."""
    learned = PassLatency()
    for rows, taken in enumerate(seconds, 1):
        learned.saw(rows, taken)
    return learned


def test_all_drafts_are_judged_while_nothing_is_known() -> None:
    assert share([3, 5], [0.8, 0.1], PassLatency(), most=16) == [3, 5]


def test_all_drafts_are_judged_where_rows_are_free() -> None:
    assert share([4], [0.5], times(1, 1, 1, 1, 1), most=16) == [4]


def test_no_draft_is_judged_where_rows_cost_more_than_they_earn() -> None:
    assert share([4], [0.5], times(1, 2, 3, 4, 5), most=16) == [0]


@pytest.mark.parametrize(("acceptance", "judged"), [(0.64, 0), (0.66, 1)])
def test_a_gain_within_the_error_of_its_estimate_counts_as_none(
    acceptance: float, judged: int
) -> None:
    assert share([1], [acceptance], times(1.0, 1.5), most=16) == [judged]


def test_for_fewest_passes_all_drafts_are_judged_whatever_they_cost() -> None:
    costs = times(1, 2, 3, 4, 5)

    assert share([2, 1], [0.5, 0.1], costs, most=16, whole=True) == [2, 1]
    assert share([2, 1], [0.5, 0.1], costs, most=4, whole=True) == [2, 0]


def test_a_session_with_useless_drafts_costs_the_others_nothing() -> None:
    costs = times(1.0, 1.1, 1.4, 1.7, 2.0, 2.3, 2.6)

    assert share([2, 3], [0.9, 0.01], costs, most=16) == [2, 0]


def test_the_likeliest_drafts_get_the_rows_there_are() -> None:
    assert share([3, 3], [0.9, 0.5], PassLatency(), most=5) == [3, 0]
    assert share([3, 3], [0.9, 0.9], PassLatency(), most=2) == [0, 0]


@given(
    st.lists(st.tuples(st.integers(0, 8), st.floats(0, 1)), max_size=6),
    st.lists(st.floats(0.01, 5), max_size=20),
    st.integers(0, 40),
)
def test_no_more_rows_than_there_are_and_no_more_drafts_than_pending(
    sessions: list[tuple[int, float]], seconds: list[float], most: int
) -> None:
    counts = share(
        [pending for pending, _ in sessions],
        [acceptance for _, acceptance in sessions],
        times(*seconds),
        most=most,
    )

    assert all(0 <= n <= pending for n, (pending, _) in zip(counts, sessions, strict=True))
    assert sum(counts) <= max(0, most - len(sessions))


def test_the_time_of_a_pass_is_learned_and_never_falls_with_rows() -> None:
    learned = times(1.0, 9.0, 2.0)

    expected = [learned.of(rows) for rows in (1, 2, 3, 4)]

    assert expected == pytest.approx([1.0, 2.0, 2.0, 2.0], rel=0.01)
    assert PassLatency().of(3) == 0.0


def test_a_size_not_seen_lies_between_those_seen() -> None:
    learned = PassLatency()
    learned.saw(5, 1.0)
    assert [learned.of(rows) for rows in (1, 5, 9)] == pytest.approx([0.2, 1.0, 1.0])

    learned.saw(1, 0.6)
    learned.saw(9, 0.8)

    assert [learned.of(rows) for rows in (1, 3, 5, 7)] == pytest.approx([0.6, 0.7, 0.8, 0.8])


def test_passes_are_timed_without_drafts_with_some_and_with_all() -> None:
    asked: list[int] = []

    def pass_s(rows: int) -> float:
        asked.append(rows)
        return 0.1 * rows

    learned = timed(pass_s, 16)

    assert asked == [1, 5, 17] * ENOUGH
    assert [learned.of(rows) for rows in (1, 3, 17)] == pytest.approx([0.1, 0.3, 1.7])
    asked.clear()
    timed(pass_s, 1)
    assert asked == [1, 2] * ENOUGH


def test_a_host_that_slows_down_does_so_for_every_size() -> None:
    learned = PassLatency()
    for _ in range(LATEST):
        for rows, seconds in enumerate((1.0, 1.2, 1.4), 1):
            learned.saw(rows, seconds)
    for _ in range(20):
        learned.saw(1, 1.5)

    assert [learned.of(rows) for rows in (1, 2, 3)] == pytest.approx([1.5, 1.8, 2.1], rel=0.06)


def test_a_pause_is_not_a_slow_host() -> None:
    learned = PassLatency()
    for rows in (1, 2) * LATEST:
        learned.saw(rows, 1.0)

    learned.saw(1, 100.0)

    assert learned.of(1) == learned.of(2) == pytest.approx(1.5, rel=0.01)


def test_sizes_not_seen_for_long_are_known_still() -> None:
    learned = PassLatency()
    for _ in range(ENOUGH):
        learned.saw(17, 0.4)
    for _ in range(1000):
        learned.saw(1, 0.2)

    assert learned.of(17) == pytest.approx(0.4)


def test_sizes_not_seen_for_long_are_known_still_on_a_host_that_pauses() -> None:
    learned, chance = PassLatency(), Random(1)
    for _ in range(ENOUGH):
        learned.saw(1, 0.2)
        learned.saw(17, 0.4)
    for _ in range(2000):
        learned.saw(1, 0.2 + chance.expovariate(1 / 0.02))

    assert learned.of(1) == pytest.approx(0.22, rel=0.1)
    assert learned.of(17) == pytest.approx(0.44, rel=0.15)


def test_a_size_that_was_slow_once_is_tried_again() -> None:
    learned, truth = times(1.0, 1.1, 50.0), (1.0, 1.1, 1.2)
    judged = []

    for _ in range(5000):
        (count,) = share([2], [0.9], learned, most=16)
        learned.saw(1 + count, truth[count])
        judged.append(count)

    assert judged[0] == 1
    assert judged[-100:].count(2) > 90


@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=20), st.integers(1, 30))
def test_a_larger_pass_is_never_expected_sooner(seconds: list[float], rows: int) -> None:
    learned = times(*seconds)

    assert learned.of(rows) <= learned.of(rows + 1)


def test_the_best_rate_is_that_of_the_pass_that_earns_most_a_second() -> None:
    flat, dear = times(0.2, 0.2, 0.2), times(0.2, 0.4, 0.6)

    assert best_rate(0.5, flat, 2) == pytest.approx(1.75 / 0.2, rel=0.01)
    assert best_rate(0.5, dear, 2) == pytest.approx(1 / 0.2, rel=0.01)
    assert best_rate(0.5, PassLatency(), 2) == inf


def test_a_chain_that_begins_again_slowly_brings_the_rate_towards_the_target_alone() -> None:
    flat = times(0.2, 0.2)

    rates = [best_rate(0.5, flat, 1, restart_s=restart_s) for restart_s in (0.0, 0.1, 100.0)]

    assert rates == sorted(rates, reverse=True)
    assert rates[1] == pytest.approx((1.5 + 0.05 / 0.2) / 0.25, rel=0.01)
    assert rates[2] == pytest.approx(1 / 0.2, rel=0.01)


def test_a_size_that_is_clearly_dearer_than_a_larger_one_counts_as_it_is() -> None:
    times = PassLatency()
    for _ in range(ENOUGH):
        times.saw(4, 0.16)
        times.saw(1, 0.21)
    for _ in range(300):
        times.saw(1, 0.21)

    assert times.of(1) == pytest.approx(0.21)
    assert times.of(2) == pytest.approx(0.16)


def test_one_slow_pass_does_not_count_against_a_size() -> None:
    times = PassLatency()
    times.saw(4, 0.16)
    times.saw(1, 0.9)

    assert times.of(1) <= 0.16
