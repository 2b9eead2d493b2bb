"""Hours of mixed traffic in short: `python -m tests.faults.soak --minutes 30`.

Answers of all kinds are asked for at a fixed rate; one in twenty is left in the middle. The
memory of both ends must be flat after the first sixth of the time, and in the end no task,
session, thread or file descriptor may be left that was not there before.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Final, Self

import typer
from rich.console import Console
from rich.table import Table

from gateway.background_work import running_alongside
from tests.faults.rig.asking import KINDS, MODEL, Answer
from tests.faults.rig.services import Service
from tests.faults.rig.world import FOLDER, Plan, World
from tests.local_models.chats import Json

WINDOWS: Final = 6
"""Parts of the time whose medians are compared; the first one is not."""

MOST_GROWTH: Final = 0.03
LEAVE_EVERY: Final = 20
"""One answer of so many is left by its client."""

SAMPLE_S: Final = 2.0
AT_ONCE: Final = 6
MOST_TOKENS: Final = 64
COLD_ANSWERS: Final = 40
"""Answers before anything is counted: threads and pools begin with them."""

IDLE_S: Final = 12.0
"""The edge's HTTP client keeps a thread that has nothing to do for ten seconds."""

POOLED: Final = (os.cpu_count() or 1) + 3
"""Threads that asyncio's pool may get after its first: when none is free, and for good."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the processes of an end hold of the machine."""

    anonymous_mb: float
    """Memory that no file backs: what a leak grows."""

    descriptors: int
    threads: int

    @classmethod
    def of(cls, pids: Iterable[int]) -> Self:
        """Return what these processes hold together. One that ends meanwhile holds nothing."""
        anonymous_kb = descriptors = threads = 0
        for pid in pids:
            with suppress(OSError):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                fields = dict(line.split(":", 1) for line in lines)
                anonymous_kb += int(fields.get("RssAnon", "0").split()[0])  # a zombie has none
                threads += int(fields["Threads"])
                descriptors += len(list(Path(f"/proc/{pid}/fd").iterdir()))
        return cls(anonymous_kb / 1024, descriptors, threads)


@dataclass
class Watched:
    """One end, and what it held over time."""

    service: Service
    samples: list[tuple[float, float]] = field(default_factory=list)
    """Times, as shares of the whole, and anonymous memory in MB."""

    before: list[int] = field(default_factory=list)
    """Descriptors, threads and tasks."""

    after: list[int] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)

    async def held(self) -> list[int]:
        self.tasks = await self.service.tasks()
        now = Footprint.of(self.service.pids)
        return [now.descriptors, now.threads, len(self.tasks)]

    @property
    def medians(self) -> list[float]:
        """Return the memory of each window, in MB."""
        windows = [
            [mb for at, mb in self.samples if int(at * WINDOWS) == w] for w in range(WINDOWS)
        ]
        return [round(median(window), 1) for window in windows if window]

    @property
    def growth(self) -> float:
        """How much the largest median exceeds the smallest, without the first window's."""
        warm = self.medians[1:] or [1.0]
        return max(warm) / min(warm) - 1.0


@dataclass
class Soak:
    world: World
    seconds: float
    answers: int
    tally: dict[str, int] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    ends: list[Watched] = field(default_factory=list)

    async def run(self, tell: Callable[[str], None]) -> None:
        self.ends = [Watched(self.world.verifiers[0]), Watched(self.world.edge)]
        await self._ask(COLD_ANSWERS, COLD_ANSWERS * self.seconds / self.answers)
        for end in self.ends:
            end.before = await self._quiet(end)
        self.tally.clear()
        async with running_alongside(self._sample(tell)):
            await self._ask(self.answers, self.seconds)
        for end in self.ends:
            end.after = await self._quiet(end)
        self.left = await self.world.left()

    async def _quiet(self, end: Watched) -> list[int]:
        """Return what an end holds when it has nothing to do."""
        await self.world.settled()
        await self.world.rest()
        await asyncio.sleep(IDLE_S)
        return await end.held()

    async def _ask(self, answers: int, seconds: float) -> None:
        chance, room = random.Random(2), asyncio.Semaphore(AT_ONCE)
        kinds = itertools.cycle(KINDS.values())
        begun = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for number in range(answers):
                await asyncio.sleep(begun + number * seconds / answers - time.monotonic())
                await room.acquire()
                tokens = chance.randint(8, MOST_TOKENS)
                body = {**next(kinds), "min_tokens": 0, "max_tokens": tokens}
                leaves = number % LEAVE_EVERY == 0
                task = tasks.create_task(self._one(body, number, leaves))
                task.add_done_callback(lambda _: room.release())

    async def _one(self, body: Json, number: int, leaves: bool) -> None:
        if number % 10 == 9:  # not streamed, and without an edge
            url = f"{self.world.verifiers[0].url}/v1/chat/completions"
            status = (
                await self.world.http.post(url, json={"model": MODEL, **body})
            ).status_code
            return self._count(f"whole: {status}")
        gone = asyncio.Event()

        def watch(answer: Answer) -> None:
            if leaves and answer.came_at:
                gone.set()

        asked = asyncio.create_task(self.world.ask(body, watch))
        leaving = asyncio.create_task(gone.wait())
        await asyncio.wait([asked, leaving], return_when=asyncio.FIRST_COMPLETED)
        for task in (asked, leaving):
            task.cancel()
        await asyncio.wait([asked, leaving])
        self._count("left" if asked.cancelled() else asked.result().outcome)

    def _count(self, outcome: str) -> None:
        self.tally[outcome] = self.tally.get(outcome, 0) + 1

    async def _sample(self, tell: Callable[[str], None]) -> None:
        begun = time.monotonic()
        for number in itertools.count():
            spent_s = time.monotonic() - begun
            for end in self.ends:
                held = Footprint.of(end.service.pids)
                end.samples.append((spent_s / self.seconds, held.anonymous_mb))
            if number % 30 == 29:
                now = ", ".join(
                    f"{e.service.name} {e.samples[-1][1]:.0f} MB" for e in self.ends
                )
                tell(f"{spent_s:.0f} s: {sum(self.tally.values())} answers; {now}")
            await asyncio.sleep(SAMPLE_S)

    @property
    def faults(self) -> list[str]:
        """Return what is not as it must be."""
        found = list(self.left)
        found += [f"{o}: {n}" for o, n in self.tally.items() if o not in _GOOD]
        for end in self.ends:
            name = end.service.name
            if end.growth > MOST_GROWTH:
                found.append(f"{name}: memory grew by {end.growth:0.1%}")
            held = zip(MORE, end.before, end.after, strict=True)
            found += [
                f"{name}: {was} {what} became {n}"
                for what, was, n in held
                if n > was + MORE[what]
            ]
        return found


MORE: Final = {"descriptors": 0, "threads": POOLED, "tasks": 0}
"""What may be held in the end that was not before."""

_GOOD: Final = {"stop", "length", "tool_calls", "left", "whole: 200"}


def show(soak: Soak, console: Console) -> None:
    table = Table("end", "MB, medians", "growth", "descriptors, threads, tasks", title="soak")
    for end in soak.ends:
        medians = " ".join(f"{mb:g}" for mb in end.medians)
        table.add_row(
            end.service.name, medians, f"{end.growth:0.1%}", f"{end.before} {end.after}"
        )
    console.print(table, dict(sorted(soak.tally.items())))
    console.print(*(soak.faults or ["flat, and nothing is left"]), sep="\n")


def main(
    minutes: Annotated[float, typer.Option(help="How long to ask.")] = 30.0,
    answers: Annotated[int, typer.Option(help="How many, in all.")] = 2000,
) -> None:
    console = Console(soft_wrap=True)

    async def run() -> Soak:
        async with World(Plan(verifiers=1, slots=AT_ONCE + 1, folder=FOLDER / "soak")) as world:
            soak = Soak(world, minutes * 60, answers)
            await soak.run(console.print)
            return soak

    soak = asyncio.run(run())
    show(soak, console)
    sys.exit(bool(soak.faults))


if __name__ == "__main__":
    typer.run(main)
