"""The simulator's AceSpec: branches are cached while a round is away, and looked up."""

from __future__ import annotations

import pytest

from picospec.bench.simulator.acespec import branches_by_depth
from picospec.bench.simulator.arms import acespec, paper
from picospec.bench.simulator.hosts import gpu
from picospec.bench.simulator.source import synthetic
from tests.bench import closed_forms
from tests.bench.simulated import DRAFT_S, PASS_S, rounded, run, whole_gaps_s


@pytest.mark.parametrize("rtt_ms", [0, 50, 200])
@pytest.mark.parametrize("hits", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.0, 4), (0.0, 16), (0.9, 8)])
def test_a_cached_branch_is_the_next_round_as_far_as_it_was_drafted(
    alpha: float, gamma: int, hits: float, rtt_ms: float
) -> None:
    source = synthetic(alpha, 800 if alpha else 100, seed=3, hits=hits)

    answer = run(acespec(gamma, branches=64), source, rtt_ms=rtt_ms)

    assert answer.tokens_per_s == pytest.approx(
        closed_forms.acespec_rate(
            alpha, hits, gamma, draft_s=DRAFT_S, rtt_s=rtt_ms / 1000, pass_s=PASS_S
        ),
        rel=0.1,
    )


def test_a_hit_ends_the_step_that_is_running() -> None:
    answer = run(acespec(16, branches=1), synthetic(0.0, 60, hits=1.0), rtt_ms=5)

    away_s, branch = PASS_S + 0.005, 10  # tokens that were drafted meanwhile, and half a step
    assert whole_gaps_s(answer) == {rounded(away_s + (16 - branch) * DRAFT_S)}


def test_a_recovered_token_is_looked_up_after_a_round_with_a_token_more() -> None:
    """While the first pass is awaited a round and a token are drafted, and then sent as one.
    With this seed both are accepted, and the token after the bonus token is not."""
    answer = run(acespec(1, branches=4), synthetic(0.7, 12, seed=9), rtt_ms=100)

    assert answer.tokens == 12


def test_branches_are_fewer_at_greater_depth() -> None:
    assert branches_by_depth(7, 2, acceptance=0.5) == [4, 2, 1]
    assert branches_by_depth(3, 3, acceptance=0.0) == [3, 0, 0, 0]
    assert branches_by_depth(4, 3, acceptance=1.0) == [1, 1, 1, 1]


def test_only_a_depth_with_branches_is_looked_up() -> None:
    rounds, cached = (
        run(arm, synthetic(0.9, 800, hits=1.0), rtt_ms=100)
        for arm in (paper(8), acespec(8, branches=1))
    )

    assert rounds.tokens_per_s < cached.tokens_per_s < 1.05 * rounds.tokens_per_s


def test_branches_slow_the_chain_where_a_step_costs_more_for_them() -> None:
    hosts = gpu(PASS_S, DRAFT_S, twice_at=256)

    rounds, cached = (
        run(arm, synthetic(1.0, 400), hosts=hosts).tokens_per_s
        for arm in (paper(8), acespec(8, branches=15))
    )

    assert cached < 0.8 * rounds
