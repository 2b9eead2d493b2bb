"""A simulated answer, alone on a host where a draft step takes a tenth of a pass."""

from __future__ import annotations

from picospec.bench.link import Conditions
from picospec.bench.simulator.arms import Arm
from picospec.bench.simulator.ends import Answer
from picospec.bench.simulator.hosts import Hosts, gpu
from picospec.bench.simulator.source import Source
from picospec.bench.simulator.world import World, simulate
from picospec.speculation.messages import Limits

DRAFT_S, PASS_S = 0.01, 0.1
GPU = gpu(PASS_S, DRAFT_S)


def run(
    arm: Arm,
    source: Source,
    *,
    rtt_ms: float = 0.0,
    hosts: Hosts = GPU,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    **link: float,
) -> Answer:
    world = World(hosts, Conditions(rtt_ms=rtt_ms, **link), limits)
    (answer,) = simulate(world, arm, [[source]])
    return answer


def rounded(seconds: float) -> float:
    return round(seconds, 9)


def whole_gaps_s(answer: Answer) -> set[float]:
    """The gaps without those at the ends."""
    return {rounded(gap_ms / 1000) for gap_ms in answer.gaps_ms[2:-20]}
