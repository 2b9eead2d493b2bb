"""What `picospec up` expects is near what the simulator says of the same host."""

from __future__ import annotations

import pytest

from bench.link import Conditions
from bench.simulator.comparison import PLAIN
from bench.simulator.hosts import Curve, Hosts, World
from bench.simulator.source import synthetic
from bench.simulator.world import simulate
from bench.statistics import geometric_mean
from picospec.expecting import MeasuredPace


def simulated(pace: MeasuredPace, share: float) -> float:
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

    expected, by_simulation = pace.gains()["text"], max(1.0, simulated(pace, share))

    assert 0.7 < expected / by_simulation < 1.43
