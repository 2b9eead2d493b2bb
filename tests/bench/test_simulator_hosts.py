"""What hosts, links and other sessions cost in the simulator."""

from __future__ import annotations

from dataclasses import replace

import pytest

from picospec.bench.link import Conditions
from picospec.bench.simulator.arms import Arm, paper, picospec, sync
from picospec.bench.simulator.hosts import Curve
from picospec.bench.simulator.source import synthetic
from picospec.bench.simulator.world import World, simulate
from tests.bench.simulated import DRAFT_S, GPU, PASS_S, run


def test_a_message_that_arrives_makes_the_pass_that_runs_longer() -> None:
    source, busy = synthetic(0.0, 200), replace(GPU, message_s=0.05)

    assert run(Arm(), source, hosts=busy).tokens_per_s == pytest.approx(1 / PASS_S)
    assert run(picospec(), source, hosts=busy).tokens_per_s < 0.98 / PASS_S
    assert run(sync(2), source, hosts=busy).tokens_per_s == pytest.approx(
        run(sync(2), source).tokens_per_s
    )


def test_a_draft_model_on_the_targets_memory_prolongs_the_pass_that_runs() -> None:
    shared = replace(GPU, drafting_s=Curve({1: 2 * PASS_S}))
    source = synthetic(1.0, 100)

    alone, together = (run(paper(4), source, hosts=hosts) for hosts in (GPU, shared))
    cloud = run(Arm(), source, hosts=shared)

    # each of the four steps of DRAFT_S in a pass costs the pass half of that time
    assert together.seconds == pytest.approx(
        alone.seconds * (1 + 2 * DRAFT_S / PASS_S), rel=0.05
    )
    assert cloud.tokens_per_s == pytest.approx(1 / PASS_S)


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
