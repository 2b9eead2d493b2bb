"""Hostile loads delay other clients no more than valid ones do, and no memory is left of them.

The same generator sends both, in a process of its own, at the same rate and of the same size
(tests/faults/flood.py). Meanwhile another client reads one long answer at the edge.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from statistics import quantiles

import pytest
import pytest_asyncio

from tests.faults.flood import LOADS
from tests.faults.rig.bystander import Bystander
from tests.faults.rig.footprint import Footprint
from tests.faults.rig.generating import generate, summary
from tests.faults.rig.report import Report
from tests.faults.rig.world import FOLDER, Plan, World

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="module")]

PLAN = Plan(verifiers=1, slots=8, folder=FOLDER / "flood")
SHORT_S, LONG_S = 3.0, 60.0
TURNS = 4
"""Parts of the long form, by turns with the valid load: its host may be busy with more."""

MORE, MORE_S = 1.15, 0.03
"""How much longer a gap may be, by chance."""

MORE_MB = 24.0
"""Memory that may have grown: what the allocator keeps. A body has 1 MB, and there are many."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def flooded() -> AsyncIterator[World]:
    async with World(PLAN) as world:
        yield world


@pytest.mark.parametrize("load", LOADS)
async def test_a_hostile_load_delays_others_no_more_than_a_valid_one(
    flooded: World, load: str, is_long: bool, report: Report
) -> None:
    turns, seconds = (TURNS, LONG_S / TURNS) if is_long else (1, SHORT_S)
    await under(flooded, load, 1.0, hostile=True)  # pools and caches fill
    valid, hostile = Loaded(), Loaded()
    for turn in range(turns):
        valid += await under(flooded, load, seconds, hostile=False)
        if not turn:
            before = footprint(flooded)
        hostile += await under(flooded, load, seconds, hostile=True)
    after = footprint(flooded)

    valid_s, hostile_s = valid.long_gap_s, hostile.long_gap_s
    turned_away = hostile.tally
    grown_mb = after.anonymous_mb - before.anonymous_mb
    note = f"valid load: {valid_s:.2f} s; {summary(turned_away)}; {grown_mb:+.1f} MB"
    report.add(f"flood of {load}", "others answered", hostile_s, note=note)
    assert set(valid.tally) <= {"200", "204", "429"}
    assert not {"500", "TimeoutError"} & set(turned_away)
    assert not is_long or hostile_s <= valid_s * MORE + MORE_S
    assert grown_mb < MORE_MB


@dataclass
class Loaded:
    """What was seen under a load."""

    gaps_s: list[float] = field(default_factory=list)
    """Of another client's answers."""

    tally: Counter[str] = field(default_factory=Counter)
    """How the load's requests were answered."""

    def __add__(self, other: Loaded) -> Loaded:
        return Loaded(self.gaps_s + other.gaps_s, self.tally + other.tally)

    @property
    def long_gap_s(self) -> float:
        """The 99th percentile."""
        return quantiles(self.gaps_s, n=100)[98]


async def under(world: World, load: str, seconds: float, *, hostile: bool) -> Loaded:
    """Return what is seen under a load."""
    other = Bystander(world)
    async with other.beside():
        at = time.monotonic()
        tally = await generate(world, load, seconds, *["--hostile"] * hostile)
        gaps_s = other.gaps_s(at)
    await world.settled()
    return Loaded(gaps_s, Counter(tally))


def footprint(world: World) -> Footprint:
    return Footprint.of(pid for service in world.services for pid in service.pids)
