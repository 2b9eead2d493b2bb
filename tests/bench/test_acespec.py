"""The simulator's AceSpec: branches are cached while a round is away, and looked up."""

from __future__ import annotations

from picospec.bench.simulator.arms import acespec, paper
from picospec.bench.simulator.hosts import gpu
from picospec.bench.simulator.rivals import branches_by_depth
from picospec.bench.simulator.source import synthetic
from tests.bench.simulated import DRAFT_S, PASS_S, rounded, run, whole_gaps_s


def test_a_hit_ends_the_step_that_is_running() -> None:
    answer = run(acespec(16, branches=1), synthetic(0.0, 60, hits=1.0), rtt_ms=5)

    away_s, branch = PASS_S + 0.005, 10  # tokens that were drafted meanwhile, and half a step
    assert whole_gaps_s(answer) == {rounded(away_s + (16 - branch) * DRAFT_S)}


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
