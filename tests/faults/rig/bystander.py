"""Another client: it reads one long answer after the other, and asks both ends for /health."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise

from tests.faults.rig.asking import Answer
from tests.faults.rig.lines import Line
from tests.faults.rig.world import World
from tests.local_models.chats import Json, user

LONG_ANSWER: Json = {
    "messages": [user("Count to one thousand, in words.")], "temperature": 0,
    "ignore_eos": True, "max_tokens": 1800,
}  # fmt: skip
ASK_EVERY_S = 0.1


@dataclass
class Bystander:
    world: World
    answers: list[Answer] = field(default_factory=list)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    health_s: list[float] = field(default_factory=list)
    """How long each /health took, of either end, over a connection of its own."""

    health: Counter[str] = field(default_factory=Counter)
    """How often each status, or error, came."""

    @asynccontextmanager
    async def beside(self, *, asks_health: bool = False) -> AsyncIterator[None]:
        """Read on, from the first token of an answer, until the block ends."""
        tasks = [asyncio.create_task(self._read_on())]
        try:
            await self.begun.wait()
            if asks_health:
                ports = [service.port for service in self.world.services]
                tasks += [asyncio.create_task(self._ask_on(port)) for port in ports]
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _read_on(self) -> None:
        while True:
            await self.world.ask(LONG_ANSWER, self._watch)
            await asyncio.sleep(0.2)  # as after an error, which comes at once

    def _watch(self, answer: Answer) -> None:
        if not self.answers or self.answers[-1] is not answer:
            self.answers.append(answer)
        self.begun.set()

    async def _ask_on(self, port: int) -> None:
        while True:
            line, begun = Line(port, self.health), time.monotonic()
            try:
                await line.send("GET", "/health")
                self.health_s.append(time.monotonic() - begun)
            finally:
                await line.close()
            await asyncio.sleep(ASK_EVERY_S)

    def gaps_s(self, since: float) -> list[float]:
        """Return the times between two pieces, and from the last piece until now."""
        pairs = [pair for answer in self.answers for pair in pairwise(answer.came_at)]
        gaps = [end - begin for begin, end in pairs if begin > since]
        latest = max((a.came_at[-1] for a in self.answers if a.came_at), default=since)
        return [*gaps, time.monotonic() - latest]
