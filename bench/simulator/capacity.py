"""Simulates how many clients one verifier serves, when clients of one arm share its passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice, pairwise
from math import ceil
from typing import Final

import msgspec

from picospec.bench.data.statistics import rate
from picospec.bench.link.path import Conditions
from picospec.bench.simulator.arms import Arm, colocated, picospec
from picospec.bench.simulator.hosts import Hosts
from picospec.bench.simulator.source import Source
from picospec.bench.simulator.table import Group
from picospec.bench.simulator.world import World, simulate

CLIENTS: Final = (1, 8, 16, 32, 48, 64, 96, 128, 192)
RTT_MS: Final = 20.0
ANSWERS: Final = 3
"""Each client asks for at least this many answers: one of every family."""

ROWS: Final = 1024
"""A pass has at most this many rows, as serving engines limit the tokens of a step."""

SHARED: Final[Mapping[str, Sequence[Arm]]] = {
    "cloud": [Arm()],
    "picospec": [picospec()],
    "colocated": [colocated(gamma) for gamma in (1, 2, 3, 4, 6)],
}
"""Clients share the verifier of these arms; each is tried at the given round lengths."""


class Crowd(msgspec.Struct, frozen=True):
    """A Crowd is a verifier and clients that all begin at once and ask for ANSWERS in a row."""

    point: str
    arm: str
    clients: int
    tokens_per_s: float
    """One client has this rate."""

    gamma: int | None


def crowds(sources: Sequence[Source], point: str, hosts: Hosts) -> Iterator[Crowd]:
    """Yield the rate of a verifier's clients for each number of clients and arm."""
    world = World(hosts, Conditions(RTT_MS), rows=ROWS)
    for count in CLIENTS:
        for name, arms in SHARED.items():
            found = [(_shared(world, arm, sources, count), arm.gamma or None) for arm in arms]
            rate, gamma = max(found, key=lambda pair: pair[0])
            yield Crowd(point, name, count, rate, gamma)


def _shared(world: World, arm: Arm, sources: Sequence[Source], clients: int) -> float:
    """Return the tokens per second of a client, over answers of every family."""
    each = max(ANSWERS, ceil(len(sources) / clients))  # so that few clients ask for all sources
    asked = [list(islice(cycle(sources), i * each, (i + 1) * each)) for i in range(clients)]
    return rate(simulate(world, arm, asked))


def capacity(found: Sequence[Crowd], arm: str, tokens_per_s: float) -> float:
    """Return the number of clients that can each have this rate, interpolated between the
    simulated numbers; 0 if not even one can."""
    own = sorted((c.clients, c.tokens_per_s) for c in found if c.arm == arm)
    if not own or own[0][1] < tokens_per_s:
        return 0.0
    for (few, fast), (many, slow) in pairwise(own):
        if slow < tokens_per_s:
            return few + (many - few) * (fast - tokens_per_s) / (fast - slow)
    return float(own[-1][0])


def alternating(groups: Sequence[Group]) -> list[Source]:
    """Return all sources with the families alternating. Raises ValueError without groups."""
    if not groups:
        raise ValueError("there are no traces at this temperature")
    most = max(len(group.sources) for group in groups)
    return [group.sources[i % len(group.sources)] for i in range(most) for group in groups]
