"""How long passes take is learned by their rows, and survives slow minutes and pauses."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculation.latency import (
    FORGET_AFTER,
    MAX_SAMPLES,
    MEASURE_S,
    MIN_SAMPLES,
    OutcomeCost,
    PassLatency,
    measured,
)
from tests.speculation.verifiers import latency


def test_the_time_of_a_pass_is_learned_and_never_falls_with_rows() -> None:
    learned = latency(1.0, 9.0, 2.0)

    expected = [learned.of(rows) for rows in (1, 2, 3, 4)]

    assert expected == pytest.approx([1.0, 2.0, 2.0, 2.0], rel=0.01)
    assert PassLatency().of(3) == 0.0


def test_a_size_not_seen_lies_between_those_seen() -> None:
    learned = PassLatency()
    learned.observe(5, 1.0)
    assert [learned.of(rows) for rows in (1, 5, 9)] == pytest.approx([0.2, 1.0, 1.0])

    learned.observe(1, 0.6)
    learned.observe(9, 0.8)

    assert [learned.of(rows) for rows in (1, 3, 5, 7)] == pytest.approx([0.6, 0.7, 0.8, 0.8])


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


def test_a_pause_is_not_a_slow_host() -> None:
    learned = PassLatency()
    for rows in (1, 2) * MAX_SAMPLES:
        learned.observe(rows, 1.0)

    learned.observe(1, 100.0)

    assert learned.of(1) == learned.of(2) == pytest.approx(1.5, rel=0.01)


def test_a_size_seen_once_is_forgotten_after_so_many_passes() -> None:
    learned = PassLatency()
    learned.observe(9, 50.0)
    for _ in range(FORGET_AFTER - 2):
        learned.observe(1, 1.0)
    assert learned.of(9) > 40.0

    learned.observe(1, 1.0)

    assert learned.of(9) == learned.of(1) == pytest.approx(1.0)


def test_sizes_not_seen_for_long_are_known_still() -> None:
    learned = PassLatency()
    for _ in range(MIN_SAMPLES):
        learned.observe(17, 0.4)
    for _ in range(1000):
        learned.observe(1, 0.2)

    assert learned.of(17) == pytest.approx(0.4)


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


def test_a_size_that_is_clearly_dearer_than_a_larger_one_counts_as_it_is() -> None:
    learned = PassLatency()
    for _ in range(MIN_SAMPLES):
        learned.observe(4, 0.16)
        learned.observe(1, 0.21)
    for _ in range(300):
        learned.observe(1, 0.21)

    assert learned.of(1) == pytest.approx(0.21)
    assert learned.of(2) == pytest.approx(0.16)


def test_one_slow_pass_does_not_count_against_a_size() -> None:
    learned = PassLatency()
    learned.observe(4, 0.16)
    learned.observe(1, 0.9)

    assert learned.of(1) <= 0.16


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


def test_noise_and_trends_are_told_apart_by_seconds_where_passes_are_brief() -> None:
    learned = PassLatency()
    for _ in range(MIN_SAMPLES):
        learned.observe(9, 0.006)
        learned.observe(4, 0.0069)

    assert learned.of(4) == pytest.approx(learned.of(9))


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
