"""The simulator drives the product's machines; where the papers' assumptions hold, it agrees
with their formulas."""

from __future__ import annotations

import json
from dataclasses import replace
from operator import eq
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from bench.__main__ import app
from bench.link import Conditions
from bench.simulator.acespec import branches_by_depth
from bench.simulator.clock import Clock
from bench.simulator.comparison import GAMMAS, PLAIN, Group, rows
from bench.simulator.event_log import events, report
from bench.simulator.hosts import CPU_BOX, Curve, Hosts, World, gpu
from bench.simulator.source import WRONG, Source, believed, synthetic, traced
from bench.simulator.world import Arm, acespec, colocated, paper, picospec, simulate, sync
from bench.statistics import geometric_mean
from picospec.expecting import MeasuredPace
from speculation.model_facts import Limits
from tests.bench.answers import (
    DRAFT_S,
    GPU,
    PASS_S,
    rounded,
    run,
    trace,
    whole_gaps_s,
)
from verifier.settings import MAX_VERIFY

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
def test_the_cloud_and_colocated_speculation_know_no_distance(rtt_ms: float) -> None:
    cloud = run(Arm(), synthetic(0.8, 50), rtt_ms=rtt_ms)
    near = run(colocated(4), synthetic(1.0, 1000), rtt_ms=rtt_ms)

    assert cloud.tokens_per_s == pytest.approx(1 / PASS_S)
    assert cloud.ttft_s == pytest.approx(rtt_ms / 1000)
    assert near.tokens_per_s == pytest.approx(5 / (PASS_S + 4 * DRAFT_S), rel=0.01)


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


@pytest.mark.parametrize("tokens", [64, 300])
@pytest.mark.parametrize("confidence", [0.0, 1.0])
@pytest.mark.parametrize("rtt_ms", [0, 10, 50, 100, 200, 300])
@pytest.mark.parametrize("hosts", [GPU, gpu(0.072, 0.024), gpu(0.01, 0.005), CPU_BOX])
def test_picospec_with_a_useless_draft_is_as_fast_as_the_cloud(
    hosts: Hosts, rtt_ms: float, confidence: float, tokens: int
) -> None:
    useless = Source((), range(tokens), believed([WRONG] * tokens, confidence))

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
    copy = Source(text, text, believed(text, 0.9))
    costly = replace(gpu(0.1, 0.01), draft_s=Curve({1: 0.01, 2: 0.02}))
    only = picospec(ngram_drafts=False)
    without = picospec(lookup=False, ngram_drafts=False)

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
    expected = Source((1,), text, believed([WRONG] * 200, 0.1), predicted=text)

    near, far = (
        run(picospec(), expected, rtt_ms=rtt_ms, hosts=gpu(0.07, 0.02)).tokens_per_s
        for rtt_ms in (10, 200)
    )

    assert near == pytest.approx(far)
    assert near > 0.8 * (Limits().max_verify + 1) / 0.07


# Traces become answers, answers become cells, cells become a table, messages become a log.

SIMULATE_GPU = World(gpu(0.1, 0.01), Conditions())


def accepted(source: Source) -> int:
    """Count the positions whose draft token, after the target's context, is the target's."""
    drafts = (source.draft(source.tokens[:i]).token for i in range(len(source.tokens)))
    return sum(map(eq, drafts, source.tokens))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_draft_tokens_of_the_targets_distribution_are_nearly_always_accepted(
    temperature: float,
) -> None:
    source = traced(trace(temperature))

    assert accepted(source) >= (0.8 if temperature else 1.0) * len(source.tokens)


def test_after_its_own_miss_the_draft_model_drafts_what_the_trace_has() -> None:
    same = trace(0.0, n=3)
    other = replace(
        same,
        draft_tokens=np.roll(same.draft_tokens, 1, axis=1),
        after_miss_tokens=np.array([[40, 41], [50, 51], [60, 61]], np.int32),
        after_miss_confidences=np.full((3, 2), 0.5, np.float32),
    )

    source = traced(other)

    missed = source.draft([]).token
    first, second = source.draft([missed]), source.draft([missed, 40])
    assert [(each.token, each.confidence) for each in (first, second)] == [(40, 0.5), (41, 0.5)]
    after = source.draft(source.tokens[:1]).token
    assert source.draft([source.tokens[0], after]).token == 50
    assert source.draft([missed, 99]).token >= WRONG  # it never drafted 99
    assert source.draft([99, 40]).token >= WRONG


def test_a_cell_holds_the_best_gamma_and_the_speed_up_over_cloud() -> None:
    group = Group("code", 0.0, [synthetic(1.0, 60)])

    cloud, sync = rows(SIMULATE_GPU, [group], [20.0], ["cloud", "sync"])

    assert cloud.speedup_vs_cloud == pytest.approx(1.0)
    assert cloud.tokens_per_s == pytest.approx(10.0)
    assert sync.gamma in GAMMAS
    assert sync.speedup_vs_cloud >= max(
        row.speedup_vs_cloud
        for gamma in GAMMAS
        for row in rows(SIMULATE_GPU, [group], [20.0], [f"sync:{gamma}"])
    )


def test_the_command_prints_a_table_and_writes_rows(tmp_path: Path) -> None:
    trace().save(tmp_path)
    out = tmp_path / "out.json"
    arguments = ["--traces", str(tmp_path), "--rtt", "10,100", "--arms", "cloud,picospec"]

    result = CliRunner().invoke(app, ["simulate", *arguments, "--json", str(out)])

    assert result.exit_code == 0, result.output
    assert "picospec" in result.output
    found = json.loads(out.read_text())["rows"]
    assert [(row["arm"], row["rtt_ms"]) for row in found] == [
        ("cloud", 10), ("picospec", 10), ("cloud", 100), ("picospec", 100),
    ]  # fmt: skip


def log(rtt_ms: float) -> str:
    return events(
        replace(SIMULATE_GPU, conditions=Conditions(rtt_ms)), "picospec", [[synthetic(0.8, 10)]]
    )


def test_every_message_that_was_sent_has_arrived() -> None:
    lines = [json.loads(line) for line in log(20.0).splitlines()]

    sent, arrived = (
        [line for line in lines if line[0] == kind] for kind in ("sent", "arrived")
    )
    assert len(sent) == len(arrived) > 0
    assert lines[-1][:3] == ["answer", 0, 10]


def test_equal_cells_are_counted_and_the_first_difference_is_shown() -> None:
    near, far = log(20.0), log(50.0)

    lines = list(report({"a": near, "b": near}, {"a": near, "b": far}))

    assert lines[0].startswith("b\n")
    assert lines[-1] == "0 only in one log, 1 identical, 1 different"


# What hosts, links and other sessions cost in the simulator.


def test_a_thin_line_costs_what_its_bytes_take() -> None:
    source = synthetic(1.0, 100)

    thin = run(Arm(), source, rtt_ms=10, rate_mbit=0.0064)  # 800 bytes a second

    assert thin.seconds >= thin.bytes_down / 800


def test_sessions_share_the_passes_of_a_verifier() -> None:
    world = World(GPU, Conditions())
    clients = [[synthetic(0.8, 50, seed)] for seed in range(4)]

    answers = simulate(world, Arm(), clients)

    assert len(answers) == 4
    assert all(a.tokens_per_s == pytest.approx(1 / PASS_S, rel=0.05) for a in answers)


# The simulator's AceSpec: branches are cached while a round is away, and looked up.


def test_a_hit_ends_the_step_that_is_running() -> None:
    answer = run(acespec(16, branches=1), synthetic(0.0, 60, hits=1.0), rtt_ms=5)

    away_s, branch = PASS_S + 0.005, 10  # tokens that were drafted meanwhile, and half a step
    assert whole_gaps_s(answer) == {rounded(away_s + (16 - branch) * DRAFT_S)}


def test_branches_are_fewer_at_greater_depth() -> None:
    assert branches_by_depth(7, 2, acceptance=0.5) == [4, 2, 1]
    assert branches_by_depth(3, 3, acceptance=0.0) == [3, 0, 0, 0]
    assert branches_by_depth(4, 3, acceptance=1.0) == [1, 1, 1, 1]


def test_branches_slow_the_chain_where_a_step_costs_more_for_them() -> None:
    hosts = gpu(PASS_S, DRAFT_S, twice_at=256)

    rounds, cached = (
        run(arm, synthetic(1.0, 400), hosts=hosts).tokens_per_s
        for arm in (paper(8), acespec(8, branches=15))
    )

    assert cached < 0.8 * rounds


# What `picospec up` expects is near what the simulator says of the same host.


def simulated_gain(pace: MeasuredPace, share: float) -> float:
    pass_s = {1: pace.token_s, 9: pace.token_s + 8 * pace.row_s}
    slowed_s = {rows: pace.slowed * seconds for rows, seconds in pass_s.items()}
    answers = [synthetic(share, 96, seed, 32) for seed in range(6)]
    drafted, alone = (
        simulate(
            World(
                Hosts(Curve(seconds), Curve({1: pace.busy_step_s})),
                Conditions(1000 * pace.rtt_s),
            ),
            PLAIN[arm],
            [answers],
        )
        for arm, seconds in (("picospec", slowed_s), ("cloud", pass_s))
    )
    return geometric_mean(
        [
            ours.tokens_per_s / its.tokens_per_s
            for ours, its in zip(drafted[2:], alone[2:], strict=True)
        ]
    )


@pytest.mark.parametrize("rtt_s", [0.0, 0.05])
@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_the_formula_is_near_the_simulator(share: float, rtt_s: float) -> None:
    pace = MeasuredPace(0.08, 0.002, 1.05, 0.01, 0.0105, rtt_s, {"text": share})

    expected, by_simulation = pace.gains()["text"], max(1.0, simulated_gain(pace, share))

    assert 0.7 < expected / by_simulation < 1.43
