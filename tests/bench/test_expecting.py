"""What `picospec up` expects is near what the simulator says of the same host."""

from __future__ import annotations

import pytest

from bench.simulator.hosts import Curve, Hosts
from bench.simulator.source import synthetic
from bench.simulator.world import PLAIN, World, simulate
from bench.statistics import geometric_mean
from picospec.expecting import MeasuredPace
from picospec.link import Conditions


def simulated(pace: MeasuredPace, share: float) -> float:
    rows = {rows: (pace.token_s + (rows - 1) * pace.row_s) * pace.slowed for rows in (1, 9)}
    hosts = Hosts(
        Curve({1: pace.token_s, 9: pace.token_s + 8 * pace.row_s}),
        Curve({1: pace.busy_step_s}),
        drafting_s=Curve(rows),
        alone_s=Curve({1: pace.draft_s}),
    )
    world = World(hosts, Conditions(1000 * pace.rtt_s))
    answers = [synthetic(share, 96, seed, 32) for seed in range(6)]
    drafted, alone = (simulate(world, PLAIN[arm], [answers]) for arm in ("picospec", "cloud"))
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

    expected, by_simulation = pace.gains()["text"], max(1.0, simulated(pace, share))

    assert 0.7 < expected / by_simulation < 1.43
