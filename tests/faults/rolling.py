"""A rolling restart under load: verifiers are drained and started again, one after the other.

    python -m tests.faults.rolling --answers 500 --clients 16

Each client asks one question after the other. An answer counts as lost if it ends with an
error, and as changed if it differs from the one that was given before the restarts.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Final

import typer
from rich.console import Console

from gateway.background_work import running_alongside
from tests.faults.rig.asking import Answer
from tests.faults.rig.world import FOLDER, Plan, World
from tests.local_models.chats import Json, user

TOPICS: Final = ("the sea", "a clock", "bread", "the moon", "a violin", "rain", "a map", "salt")
TOKENS: Final = 48
PAUSE_S: Final = 1.0
"""Time between a verifier that serves again and the next one's restart."""


def questions() -> list[Json]:
    """Return questions, half of them at temperature 0."""
    return [
        {
            "messages": [user(f"Write a few lines about {topic}.")], "max_tokens": TOKENS,
            "temperature": number % 2, "seed": number, "logprobs": number % 3 == 0,
        }
        for number, topic in enumerate(TOPICS)
    ]  # fmt: skip


@dataclass
class Roll:
    """The outcome of a rolling restart."""

    answers: int = 0
    lost: list[str] = field(default_factory=list)
    changed: int = 0
    restarts: int = 0
    longest_gap_s: float = 0.0
    seconds: float = 0.0

    def count(self, answer: Answer, expected: Answer) -> None:
        self.answers += 1
        self.longest_gap_s = max(self.longest_gap_s, answer.gap_s())
        if answer.error or not answer.finish:
            self.lost.append(f"{answer.outcome}: {answer.error}")
        else:
            self.changed += answer != expected

    @property
    def verdict(self) -> str:
        return (
            f"{len(self.lost)} of {self.answers} answers lost, {self.changed} changed;"
            f" {self.restarts} restarts in {self.seconds:.0f} s;"
            f" longest time without text {self.longest_gap_s:.2f} s"
        )


async def roll(
    world: World, answers: int, clients: int, tell: Callable[[str], None] = lambda line: None
) -> Roll:
    """Restart verifiers while so many answers are asked for, or more until one has restarted.
    tell: is called after each."""
    asked = questions()
    expected = [await world.ask(body) for body in asked]
    outcome, begun = Roll(), time.monotonic()
    numbers = itertools.takewhile(
        lambda number: number < answers or not outcome.restarts, itertools.count()
    )
    async with running_alongside(_restart(world, outcome, tell)), asyncio.TaskGroup() as asking:
        for _ in range(clients):
            asking.create_task(_client(world, numbers, asked, expected, outcome))
    outcome.seconds = time.monotonic() - begun
    return outcome


async def _client(
    world: World,
    numbers: Iterator[int],
    asked: list[Json],
    expected: list[Answer],
    outcome: Roll,
) -> None:
    for number in numbers:
        which = number % len(asked)
        outcome.count(await world.ask(asked[which]), expected[which])


async def _restart(world: World, outcome: Roll, tell: Callable[[str], None]) -> None:
    begun = time.monotonic()
    for verifier in itertools.cycle(world.verifiers):
        await verifier.terminate()
        verifier.start()
        await verifier.ready(world.http)
        outcome.restarts += 1
        outcome.seconds = time.monotonic() - begun
        tell(outcome.verdict)
        await asyncio.sleep(PAUSE_S)


def main(
    answers: Annotated[int, typer.Option(help="Answers to ask for.")] = 500,
    clients: Annotated[int, typer.Option(help="Clients that ask at the same time.")] = 16,
) -> None:
    async def run() -> Roll:
        plan = Plan(slots=clients, edge_slots=min(clients, 8), folder=FOLDER / "rolling")
        async with World(plan) as world:
            return await roll(world, answers, clients, console.print)

    console = Console(soft_wrap=True)
    outcome = asyncio.run(run())
    console.print(outcome.verdict, *outcome.lost[:5], sep="\n")
    sys.exit(bool(outcome.lost or outcome.changed))


if __name__ == "__main__":
    typer.run(main)
