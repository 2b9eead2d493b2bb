"""`python -m bench.simulator.predict`: what larger models on GPUs would gain, by simulation.

An operating point is a target on a GPU, a draft model on a device, and the same draft model on
the GPU, three times as fast. The first two are those of arXiv:2603.19133; the others have an
engine of 10 ms a token. What drafts are worth comes from traces; time is made up:

* a pass over TWICE_AT rows takes twice as long as over one, others in proportion;
* prompts take no time: what is compared begins with the first token;
* software and processors at both ends add nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice, pairwise
from math import ceil
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.progress import track

from bench.link.path import Conditions
from bench.simulator.arms import Arm, colocated, picospec
from bench.simulator.command import load
from bench.simulator.hosts import Hosts, gpu
from bench.simulator.source import Source
from bench.simulator.table import Group, Row, rows, speedups
from bench.simulator.world import World, simulate

TWICE_AT: Final = 256
POINTS: Final[Mapping[str, Hosts]] = {
    f"{target:g}/{draft:g} ms": gpu(target / 1e3, draft / 1e3, beside / 1e3, TWICE_AT)
    for target, draft, beside in ((72, 24, 8), (146, 43, 14.3), (10, 5, 1.7), (10, 10, 3.3))
}
"""Named after the time of a token of the target, and of the draft model on the device."""

RTTS_MS: Final = (2.0, 10.0, 20.0, 50.0, 100.0, 200.0, 300.0)
ARMS: Final = ("sync", "paper", "paper:4", "picospec", "colocated")

CLIENTS: Final = (1, 8, 16, 32, 48, 64, 96, 128, 192)
CAPACITY_RTT_MS: Final = 20.0
ANSWERS: Final = 3
"""Of each client at least: one of every family."""

ROWS: Final = 1024
"""The most of a pass, as serving engines limit the tokens of a step."""

SHARED: Final[Mapping[str, Sequence[Arm]]] = {
    "cloud": [Arm()],
    "picospec": [picospec()],
    "colocated": [colocated(gamma) for gamma in (1, 2, 3, 4, 6)],
}
"""Arms whose verifier is shared, each tried at the round lengths given."""

SHARES: Final = (0.6, 0.8, 1.5)
"""Rates to be kept up, as parts of what the target says to one client alone."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """One verifier and its clients, who all begin at once and ask for ANSWERS in a row."""

    point: str
    arm: str
    clients: int
    tokens_per_s: float
    """Of one client."""

    gamma: int | None


def single(groups: Sequence[Group], point: str) -> list[Row]:
    """Return one user's cells at an operating point."""
    world = World(POINTS[point], Conditions())
    return list(rows(world, groups, RTTS_MS, ARMS))


def crowds(sources: Sequence[Source], point: str) -> Iterator[Crowd]:
    """Yield how fast clients are served by one verifier, by their number and arm."""
    world = World(POINTS[point], Conditions(CAPACITY_RTT_MS), rows=ROWS)
    for count in CLIENTS:
        for name, arms in SHARED.items():
            found = [(_shared(world, arm, sources, count), arm.gamma or None) for arm in arms]
            rate, gamma = max(found, key=lambda pair: pair[0])
            yield Crowd(point, name, count, rate, gamma)


def _shared(world: World, arm: Arm, sources: Sequence[Source], clients: int) -> float:
    """Return the tokens per second of a client, over answers of every family."""
    each = max(ANSWERS, ceil(len(sources) / clients))  # few clients ask for all, too
    asked = [list(islice(cycle(sources), i * each, (i + 1) * each)) for i in range(clients)]
    answers = simulate(world, arm, asked)
    tokens = sum(answer.tokens - answer.log.arrivals[0][1] for answer in answers)
    return tokens / sum(answer.seconds - answer.ttft_s for answer in answers)


def capacity(found: Sequence[Crowd], arm: str, tokens_per_s: float) -> float:
    """Return how many clients can have so many tokens per second each; between the numbers
    simulated, on a straight line. 0 if not even one can."""
    own = sorted((c.clients, c.tokens_per_s) for c in found if c.arm == arm)
    if not own or own[0][1] < tokens_per_s:
        return 0.0
    for (few, fast), (many, slow) in pairwise(own):
        if slow < tokens_per_s:
            return few + (many - few) * (fast - tokens_per_s) / (fast - slow)
    return float(own[-1][0])


def capacity_table(found: Sequence[Crowd]) -> str:
    """Return Markdown: clients of one verifier who have so many tokens per second each."""
    lines = [
        "| target/draft | tokens/s of each | " + " | ".join(f"`{a}`" for a in SHARED) + " |"
    ]
    lines.append("|---|---" + "|---" * len(SHARED) + "|")
    for point, hosts in POINTS.items():
        own = [crowd for crowd in found if crowd.point == point]
        for share in SHARES:
            rate = share / hosts.pass_s.of(1)
            served = (_clients(capacity(own, arm, rate)) for arm in SHARED)
            lines.append(f"| {point} | {rate:.3g} | {' | '.join(served)} |")
    return "\n".join(lines)


def _clients(count: float) -> str:
    return f"{count:.0f}" if count < CLIENTS[-1] else f"{CLIENTS[-1]} or more"


def alternating(groups: Sequence[Group]) -> list[Source]:
    """Return all sources, a family after another in turn."""
    most = max(len(group.sources) for group in groups)
    return [group.sources[i % len(group.sources)] for i in range(most) for group in groups]


def speedup_table(cells: Mapping[tuple[str, float], Sequence[Row]], temperature: float) -> str:
    """Return Markdown: points and arms down, round trips across; means over families."""
    lines = ["| target/draft | arm | " + " | ".join(f"{ms:g} ms" for ms in RTTS_MS) + " |"]
    lines.append("|---|---" + "|---" * len(RTTS_MS) + "|")
    for (point, heat), found in cells.items():
        if heat == temperature:
            table = speedups(found)
            for arm in ARMS:
                values = (f"{table[arm, 'all'][ms]:.2f}" for ms in RTTS_MS)
                lines.append(f"| {point} | `{arm}` | {' | '.join(values)} |")
    return "\n".join(lines)


def crowd_table(found: Sequence[Crowd]) -> str:
    """Return Markdown: arms down, clients across; tokens per second of each client."""
    lines = ["| target/draft | arm | " + " | ".join(map(str, CLIENTS)) + " |"]
    lines.append("|---|---" + "|---" * len(CLIENTS) + "|")
    for point, arm in dict.fromkeys((c.point, c.arm) for c in found):
        values = (f"{c.tokens_per_s:.1f}" for c in found if (c.point, c.arm) == (point, arm))
        lines.append(f"| {point} | `{arm}` | {' | '.join(values)} |")
    return "\n".join(lines)


def main(
    traces: Annotated[Path, typer.Option(help="Folder that `bench record` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for tables, figures and plots.")],
    families: Annotated[str, typer.Option()] = "code,maths,chat",
) -> None:
    """Simulate every operating point; some minutes."""
    from bench.report.plots import draw_predictions

    groups = load(traces, families.split(","))
    heats = list(dict.fromkeys(group.temperature for group in groups))
    cells = {
        (point, heat): single([g for g in groups if g.temperature == heat], point)
        for heat in heats
        for point in track(POINTS, f"T = {heat:g}")
    }
    sources = alternating([g for g in groups if g.temperature == heats[0]])
    found = [c for point in track(POINTS, "crowds") for c in crowds(sources, point)]
    out.mkdir(parents=True, exist_ok=True)
    tables = [f"T = {heat:g}\n\n{speedup_table(cells, heat)}" for heat in heats]
    tables += [f"T = {heats[0]:g}", crowd_table(found), capacity_table(found)]
    (out / "predictions.md").write_text("\n\n".join(tables) + "\n")
    document = {
        "simulated": True,
        "cells": [
            {"point": point, **asdict(r)} for (point, _), some in cells.items() for r in some
        ],
        "crowds": [asdict(crowd) for crowd in found],
    }
    (out / "predictions.json").write_text(json.dumps(document, indent=1))
    draw_predictions(cells, found, out)


if __name__ == "__main__":
    typer.run(main)
