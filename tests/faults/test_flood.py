"""Hostile loads delay other clients no more than valid ones do, and no memory is left of them.

The same generator sends both, in a process of its own, at the same rate and of the same size
(tests/faults/flood.py). Meanwhile another client reads one long answer at the edge.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import quantiles

import pytest
import pytest_asyncio

from tests.faults.flood import LOADS
from tests.faults.rig.asking import Answer
from tests.faults.rig.footprint import Footprint
from tests.faults.rig.generating import generate, told
from tests.faults.rig.report import Report
from tests.faults.rig.world import FOLDER, Plan, World
from tests.models.chats import Json, user

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="module")]

PLAN = Plan(verifiers=1, slots=8, resume_window_s=3.0, folder=FOLDER / "flood")
SHORT_S, LONG_S = 4.0, 60.0
MORE, MORE_S = 1.15, 0.03
"""How much longer a gap may be, by chance."""

MORE_IN_SHORT, MORE_IN_SHORT_S = 2.0, 0.5
"""The same in the short form, which has few gaps and may share its host."""

MORE_MB = 24.0
"""Memory that may have grown: what the allocator keeps. A body has 8 MB, and there are many."""

LONG_ANSWER: Json = {
    "messages": [user("Count to one thousand, in words.")], "temperature": 0,
    "ignore_eos": True, "max_tokens": 1800,
}  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def flooded() -> AsyncIterator[World]:
    async with World(PLAN) as world:
        yield world


@pytest.mark.parametrize("load", LOADS)
async def test_a_hostile_load_delays_others_no_more_than_a_valid_one(
    flooded: World, load: str, is_long: bool, report: Report
) -> None:
    seconds = LONG_S if is_long else SHORT_S
    more, more_s = (MORE, MORE_S) if is_long else (MORE_IN_SHORT, MORE_IN_SHORT_S)
    await under(flooded, load, 1.0, hostile=True)  # pools and caches fill
    valid_s, answered = await under(flooded, load, seconds, hostile=False)
    before = footprint(flooded)
    hostile_s, turned_away = await under(flooded, load, seconds, hostile=True)
    after = footprint(flooded)

    grown_mb = after.anonymous_mb - before.anonymous_mb
    note = f"valid load: {valid_s:.2f} s; {told(turned_away)}; {grown_mb:+.1f} MB"
    report.add(f"flood of {load}", "others answered", hostile_s, note=note)
    assert set(answered) <= {"200", "204", "429"}
    assert not {"500", "TimeoutError"} & set(turned_away)
    assert hostile_s <= valid_s * more + more_s
    assert grown_mb < MORE_MB


@dataclass
class Reader:
    """Another client, which reads one long answer after the other."""

    world: World
    answers: list[Answer] = field(default_factory=list)
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def read_on(self) -> None:
        while True:
            await self.world.ask(LONG_ANSWER, self._watch)
            await asyncio.sleep(0.2)  # as after an error, which comes at once

    def _watch(self, answer: Answer) -> None:
        if not self.answers or self.answers[-1] is not answer:
            self.answers.append(answer)
        self.begun.set()

    def gap_s(self, since: float) -> float:
        """Return the 99th percentile of the times between two pieces."""
        pairs = (pair for answer in self.answers for pair in pairwise(answer.came_at))
        gaps = [end - begin for begin, end in pairs if begin > since]
        return quantiles(gaps, n=100)[98]


async def under(
    world: World, load: str, seconds: float, *, hostile: bool
) -> tuple[float, dict[str, int]]:
    """Return a long gap of another client's answers under a load, and how the load's requests
    were answered."""
    reader = Reader(world)
    reading = asyncio.create_task(reader.read_on())
    await reader.begun.wait()
    at = time.monotonic()
    tally = await generate(world, load, seconds, *["--hostile"] * hostile)
    reading.cancel()
    await asyncio.wait([reading])
    await world.settled()
    return reader.gap_s(at), tally


def footprint(world: World) -> Footprint:
    return Footprint.of(pid for service in world.services for pid in service.pids)
