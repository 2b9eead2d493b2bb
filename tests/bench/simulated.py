"""A simulated answer, alone on a host where a draft step takes a tenth of a pass."""

from __future__ import annotations

from bench.link.path import Conditions
from bench.simulator.arms import Arm
from bench.simulator.edge import Answer
from bench.simulator.hosts import Hosts, gpu
from bench.simulator.source import Source
from bench.simulator.world import World, simulate
from speculation.protocol.messages import Limits

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
