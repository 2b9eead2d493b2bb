"""Faults that end an answer: of the edge itself, and of a request that kills every engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from edge_agent.link.failover import MAX_LOST
from tests.faults.rig.asking import MODEL, Answer
from tests.faults.rig.breakable import POISON
from tests.faults.rig.report import Report
from tests.faults.rig.world import World
from tests.faults.striking import ask_again, serves_again, struck

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="session")]


async def test_a_killed_edges_answers_can_be_asked_for_again(
    world: World, undisturbed: dict[str, Answer], report: Report
) -> None:
    async def kill(world: World) -> None:
        await world.edge.kill()

    answers, at = await struck(world, kill)
    await serves_again(world)
    again_s = time.monotonic() - at
    again = await ask_again(world)

    report.add("edge SIGKILL", "cut, asked again", again_s, again == undisturbed)
    for kind, answer in answers.items():
        assert answer.outcome in ("connection", "cut")
        assert undisturbed[kind].text.startswith(answer.text)
    assert again == undisturbed


async def test_an_edge_that_is_asked_to_end_ends_its_answers_first(
    world: World, undisturbed: dict[str, Answer], report: Report
) -> None:
    async def terminate(world: World) -> None:
        await world.edge.terminate()

    answers, at = await struck(world, terminate)

    gap_s = max(answer.gap_s(at) for answer in answers.values())
    report.add("edge SIGTERM", "complete", gap_s, answers == undisturbed)
    await serves_again(world)
    assert answers == undisturbed


@dataclass
class Supervisor:
    """It starts verifiers that have ended, as a service manager does."""

    deaths: int = 0

    @asynccontextmanager
    async def over(self, world: World) -> AsyncIterator[None]:
        watching = asyncio.create_task(self._watch(world))
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait([watching])

    async def _watch(self, world: World) -> None:
        while True:
            for verifier in world.verifiers:
                if not verifier.alive:
                    self.deaths += 1
                    verifier.start()
            await asyncio.sleep(0.1)


async def test_a_request_that_kills_engines_is_given_up_and_others_go_on(
    world: World, undisturbed: dict[str, Answer], report: Report
) -> None:
    supervisor = Supervisor()
    poison: dict[str, object] = {}

    async def ask_poison(world: World) -> None:
        body = {"model": MODEL, "prompt": [1, 2, POISON, 3], "max_tokens": 5}
        path = f"{world.edge.url}/v1/completions"
        poison.update((await world.http.post(path, json=body, timeout=150)).json()["error"])

    async with supervisor.over(world):
        answers, at = await struck(world, ask_poison)

    gap_s = max(answer.gap_s(at) for answer in answers.values())
    note = f"{supervisor.deaths} verifiers died"
    report.add("poison request", str(poison["code"]), gap_s, answers == undisturbed, note)
    await serves_again(world)
    assert supervisor.deaths == MAX_LOST
    assert answers == undisturbed
