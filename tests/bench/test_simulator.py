"""The simulator drives the product's machines; where the papers' assumptions hold, it agrees
with their formulas."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picospec.bench.simulator.arms import Arm, acespec, colocated, paper, picospec, sync
from picospec.bench.simulator.hosts import CPU_BOX, Clock, Curve, Hosts, gpu
from picospec.bench.simulator.source import WRONG, Source, synthetic
from picospec.speculation.messages import Limits
from picospec.verifier.settings import MAX_VERIFY
from tests.bench.simulated import DRAFT_S, GPU, PASS_S, rounded, run, whole_gaps_s

DEAR = Hosts(Curve({1: 0.1, 2: 0.2, 3: 0.29, 5: 0.47, 9: 0.8, 17: 1.4}), Curve({1: 0.017}))
"""llama.cpp on one core: a row costs nearly a pass."""

EDGES = (picospec(), picospec(fill="never"))
ARMS = (Arm(), sync(3), paper(3), acespec(3, 4), colocated(3), *EDGES)


def test_events_of_one_instant_happen_in_the_order_asked_for() -> None:
    clock, seen = Clock(), []
    for name in "abc":
        clock.after(1.0, lambda name=name: seen.append(name))

    clock.run()

    assert (seen, clock.now_s) == (["a", "b", "c"], 1.0)


def test_a_curve_is_straight_between_its_points_and_beyond_the_last() -> None:
    curve = Curve({1: 0.2, 3: 0.4, 5: 0.5})

    assert [curve.of(rows) for rows in (1, 2, 5, 7)] == pytest.approx([0.2, 0.3, 0.5, 0.6])


@pytest.mark.parametrize("rtt_ms", [0, 10, 300])
def test_the_cloud_commits_a_token_a_pass_at_any_distance(rtt_ms: float) -> None:
    answer = run(Arm(), synthetic(0.8, 50), rtt_ms=rtt_ms)

    assert answer.tokens_per_s == pytest.approx(1 / PASS_S)
    assert answer.ttft_s == pytest.approx(rtt_ms / 1000)


@given(
    acceptance=st.floats(0, 1),
    rtt_ms=st.floats(0, 300),
    jitter=st.floats(0, 1),
    seed=st.integers(0, 9),
    arm=st.sampled_from(ARMS),
)
@settings(deadline=None, max_examples=60)
def test_every_arm_commits_all_of_the_targets_answer(
    acceptance: float, rtt_ms: float, jitter: float, seed: int, arm: Arm
) -> None:
    source = synthetic(acceptance, 40, seed)

    answer = run(arm, source, rtt_ms=rtt_ms, jitter_ms=jitter * rtt_ms)

    assert answer.tokens == 40
    assert answer.accepted <= answer.judged <= answer.drafted
    assert all(gap_ms >= 0 for gap_ms in answer.gaps_ms)


@pytest.mark.parametrize("rtt_ms", [0, 50, 200])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.0, 1), (0.6, 4), (0.9, 8), (1.0, 4)])
def test_a_round_takes_drafting_a_round_trip_and_a_pass_unless_its_drafting_was_hidden(
    alpha: float, gamma: int, rtt_ms: float
) -> None:
    """As published, drafting is hidden where the round before was accepted."""
    away_s = rtt_ms / 1000 + PASS_S
    miss, hit = away_s + gamma * DRAFT_S, max(away_s, (gamma + 1) * DRAFT_S)
    source = synthetic(alpha, 800, seed=3)

    synchronous, published = (
        whole_gaps_s(run(arm, source, rtt_ms=rtt_ms)) for arm in (sync(gamma), paper(gamma))
    )

    assert synchronous == {rounded(miss)}
    assert published <= {rounded(hit), rounded(miss)}
    assert rounded(hit) in published or alpha < 0.9


@pytest.mark.parametrize(("rtt_ms", "step_s"), [(0, None), (300, None), (300, 0.002)])
def test_colocated_speculation_knows_no_distance_and_has_steps_of_its_own(
    rtt_ms: float, step_s: float | None
) -> None:
    hosts = gpu(PASS_S, DRAFT_S, colocated_s=step_s)

    answer = run(colocated(4), synthetic(1.0, 1000), rtt_ms=rtt_ms, hosts=hosts)

    assert answer.tokens_per_s == pytest.approx(
        5 / (PASS_S + 4 * (step_s or DRAFT_S)), rel=0.01
    )


@pytest.mark.parametrize("tokens", [64, 300])
@pytest.mark.parametrize("confidence", [0.0, 1.0])
@pytest.mark.parametrize("rtt_ms", [0, 10, 50, 100, 200, 300])
@pytest.mark.parametrize("hosts", [GPU, gpu(0.072, 0.024), gpu(0.01, 0.005), CPU_BOX])
def test_picospec_with_a_useless_draft_is_as_fast_as_the_cloud(
    hosts: Hosts, rtt_ms: float, confidence: float, tokens: int
) -> None:
    useless = Source((), range(tokens), [WRONG] * tokens, [confidence] * tokens)

    answer = run(picospec(), useless, rtt_ms=rtt_ms, hosts=hosts)

    assert answer.tokens_per_s >= 0.98 / hosts.pass_s.of(1)


@pytest.mark.parametrize("alpha", [0.5, 0.7, 0.87, 0.92, 0.95, 0.98])
@pytest.mark.parametrize("rtt_ms", [0, 50, 200])
def test_good_drafts_cost_next_to_nothing_where_rows_are_dear(
    rtt_ms: float, alpha: float
) -> None:
    limits = Limits(max_verify=MAX_VERIFY["llama"])
    rates = [
        run(picospec(), source, rtt_ms=rtt_ms, hosts=DEAR, limits=limits).tokens_per_s
        for source in (synthetic(alpha, 300, seed) for seed in range(4))
    ]

    assert fmean(rates) >= 0.95 / DEAR.pass_s.of(1)


def test_a_perfect_draft_fills_every_pass() -> None:
    answer = run(picospec(), synthetic(1.0, 3000), rtt_ms=50, hosts=gpu(0.1, 0.002))

    assert answer.tokens_per_s == pytest.approx(33 / 0.1, rel=0.05)  # max_verify, and the bonus


def test_a_copy_is_looked_up_where_steps_limit_or_else_read_where_reading_is_cheap() -> None:
    text = list(range(200))
    copy = Source(text, text, text, [0.9] * 200)
    costly = replace(gpu(0.1, 0.01), draft_s=Curve({1: 0.01, 2: 0.02}))
    only = picospec(own_drafts=False)
    without = picospec(lookup=False, own_drafts=False)

    looked_up, read, drafted = (
        run(only, copy, rtt_ms=20, hosts=hosts).tokens_per_s
        / run(without, copy, rtt_ms=20, hosts=hosts).tokens_per_s
        for hosts in (gpu(0.01, 0.01), gpu(0.1, 0.01), costly)
    )

    assert looked_up > 2.0
    assert 1.1 < read < 1.6  # up to max_verify
    assert drafted == 1.0


def test_a_right_prediction_is_as_fast_at_any_distance() -> None:
    text = list(range(200))
    expected = Source((1,), text, [WRONG] * 200, [0.1] * 200, predicted=text)

    near, far = (
        run(picospec(), expected, rtt_ms=rtt_ms, hosts=gpu(0.07, 0.02)).tokens_per_s
        for rtt_ms in (10, 200)
    )

    assert near == pytest.approx(far)
    assert near > 0.8 * (Limits().max_verify + 1) / 0.07
