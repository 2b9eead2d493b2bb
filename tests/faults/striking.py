"""Has a fault strike in the middle of answers, and checks that all is well afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from tests.faults.rig.asking import BRIEF, KINDS, Answer, Watch
from tests.faults.rig.world import World
from tests.faults.strikes import Strike
from tests.models.chats import Json

BEGUN: Final = 30
"""Characters of each answer that have come when a fault strikes."""

WITHIN_S: Final = 240.0


async def struck(world: World, strike: Strike) -> tuple[dict[str, Answer], float]:
    """Return an answer of each kind, and when the fault struck."""
    answers, at = await _struck(world, list(KINDS.values()), strike)
    return dict(zip(KINDS, answers, strict=True)), at


async def struck_one(world: World, body: Json, strike: Strike) -> tuple[Answer, float]:
    """Return an answer, and when the fault struck."""
    (answer,), at = await _struck(world, [body], strike)
    return answer, at


async def _struck(
    world: World, bodies: Sequence[Json], strike: Strike
) -> tuple[list[Answer], float]:
    begun = [asyncio.Event() for _ in bodies]

    def watch(number: int) -> Watch:
        def look(answer: Answer) -> None:
            if answer.shown >= BEGUN or answer.finish:
                begun[number].set()

        return look

    async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as tasks:
        asked = [
            tasks.create_task(world.ask(body, watch(number)))
            for number, body in enumerate(bodies)
        ]
        for event in begun:
            await event.wait()
        assert not all(task.done() for task in asked), "all ended before the fault"
        at = time.monotonic()
        if (striking := strike(world)) is not None:
            await striking
    return [task.result() for task in asked], at


async def serves_again(world: World) -> None:
    """Have the fault end; nothing may be left, and everything must work."""
    await world.heal()
    await world.settled()
    brief = [await world.ask(BRIEF) for _ in range(2)]
    assert brief[0] == brief[1]
    assert brief[0].outcome in ("stop", "length")


async def ask_again(world: World) -> dict[str, Answer]:
    """Return an answer of each kind; nothing happens to them."""
    answers = await asyncio.gather(*map(world.ask, KINDS.values()))
    return dict(zip(KINDS, answers, strict=True))
