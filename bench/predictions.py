"""`python -m bench.predictions` simulates what larger models on GPUs would gain, and
how many clients one verifier would serve.

Traces determine which draft tokens are accepted; docs/performance.md lists the assumptions
about times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice, pairwise, product
from math import ceil
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.progress import track

from bench import options
from bench.results import save
from bench.simulator.hosts import POINTS, Hosts
from bench.simulator.source import Source
from bench.simulator.world import (
    ANSWERS,
    ROWS,
    Arm,
    Group,
    SimulatedRow,
    World,
    alternating,
    colocated,
    groups,
    picospec,
    rows,
    simulate,
    speedups,
)
from bench.statistics import Mean, draw, grid, markdown, rate
from picospec.link import Conditions

RTTS_MS: Final = (2.0, 10.0, 20.0, 50.0, 100.0, 200.0, 300.0)
ARMS: Final = ("sync", "paper", "paper:4", "acespec", "picospec", "colocated")

SHARES: Final = (0.6, 0.8, 1.5)
"""The capacity is counted at these rates for each client, relative to the target's rate with a
single client."""

Cells = Mapping[tuple[str, float], Sequence[SimulatedRow]]
"""Maps an operating point and a temperature to their rows."""


def single(over: Sequence[Group], point: str) -> list[SimulatedRow]:
    """Return the cells of a single user at an operating point."""
    return list(rows(World(POINTS[point], Conditions()), over, RTTS_MS, ARMS))


def speedup_table(cells: Cells, temperature: float) -> str:
    """Return Markdown: points and arms as lines, round trips as columns; mean of families."""
    means = {
        ((point, f"`{arm}`"), f"{rtt_ms:g} ms"): f"{value:.2f}"
        for (point, heat), rates in cells.items()
        if heat == temperature
        for arm in ARMS
        for rtt_ms, value in speedups(rates)[arm, "all"].items()
    }
    return markdown(*grid(("target/draft", "arm"), means))


# Simulates how many clients one verifier serves, when clients of one arm share its passes.

CLIENTS: Final = (1, 8, 16, 32, 48, 64, 96, 128, 192)
RTT_MS: Final = 20.0
"""These clients have this round trip, in ms."""

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
            result = [(_shared(world, arm, sources, count), arm.gamma or None) for arm in arms]
            rate, gamma = max(result, key=lambda pair: pair[0])
            yield Crowd(point, name, count, rate, gamma)


def _shared(world: World, arm: Arm, sources: Sequence[Source], clients: int) -> float:
    """Return the tokens per second of a client, over answers of every family."""
    each = max(ANSWERS, ceil(len(sources) / clients))  # so that few clients ask for all sources
    sources_by_client = [
        list(islice(cycle(sources), i * each, (i + 1) * each)) for i in range(clients)
    ]
    return rate(simulate(world, arm, sources_by_client))


def capacity(crowd_list: Sequence[Crowd], arm: str, tokens_per_s: float) -> float:
    """Return the number of clients that can each have this rate, interpolated between the
    simulated numbers; 0 if not even one can."""
    own = sorted((c.clients, c.tokens_per_s) for c in crowd_list if c.arm == arm)
    if not own or own[0][1] < tokens_per_s:
        return 0.0
    for (few, fast), (many, slow) in pairwise(own):
        if slow < tokens_per_s:
            return few + (many - few) * (fast - tokens_per_s) / (fast - slow)
    return float(own[-1][0])


def crowd_table(crowd_list: Sequence[Crowd]) -> str:
    """Return Markdown: arms as lines, clients as columns; tokens per second of each client."""
    rates = {
        ((c.point, f"`{c.arm}`"), str(c.clients)): f"{c.tokens_per_s:.1f}" for c in crowd_list
    }
    return markdown(*grid(("target/draft", "arm"), rates))


def capacity_table(crowd_list: Sequence[Crowd]) -> str:
    """Return Markdown: the number of clients of one verifier that can have each rate."""
    served = {}
    for (point, hosts), share in product(POINTS.items(), SHARES):
        own = [crowd for crowd in crowd_list if crowd.point == point]
        rate = share / hosts.pass_s.of(1)
        for arm in SHARED:
            served[(point, f"{rate:.3g}"), f"`{arm}`"] = _clients(capacity(own, arm, rate))
    return markdown(*grid(("target/draft", "tokens/s of each"), served))


def _clients(count: float) -> str:
    return f"{count:.0f}" if count < CLIENTS[-1] else f"{CLIENTS[-1]} or more"


def main(
    traces: options.Traces,
    out: Annotated[Path, typer.Option(help="Folder for tables, figures and plots.")],
    families: options.Families = "code,maths,chat",
) -> None:
    """Simulate every operating point; some minutes, and a dozen more for `acespec`."""
    import matplotlib  # noqa: F401  draw needs it, after the minutes of simulation

    traces_by_family = groups(traces, options.names(families))
    heats = list(dict.fromkeys(group.temperature for group in traces_by_family))
    cells = {
        (point, heat): single([g for g in traces_by_family if g.temperature == heat], point)
        for heat in heats
        for point in track(POINTS, f"T = {heat:g}")
    }
    sources = alternating([g for g in traces_by_family if g.temperature == heats[0]])
    served = [c for p in track(POINTS, "crowds") for c in crowds(sources, p, POINTS[p])]
    out.mkdir(parents=True, exist_ok=True)
    tables = [f"T = {heat:g}\n\n{speedup_table(cells, heat)}" for heat in heats]
    tables += [f"T = {heats[0]:g}", crowd_table(served), capacity_table(served)]
    (out / "predictions.md").write_text("\n\n".join(tables) + "\n")
    points = [
        {"point": point, **msgspec.to_builtins(row)}
        for (point, _), some in cells.items()
        for row in some
    ]
    document = {"simulated": True, "cells": points, "crowds": served}
    save(document, out / "predictions.json")
    found_at = {(f"T = {heat:g}", point): some for (point, heat), some in cells.items()}
    speeds = {
        panel: {
            "cloud": dict.fromkeys(RTTS_MS, Mean(1.0)),
            **{arm: _means(speedups(some)[arm, "all"]) for arm in ARMS},
        }
        for panel, some in found_at.items()
    }
    rates = {
        ("", point): {
            arm: _means(
                {c.clients: c.tokens_per_s for c in served if (c.point, c.arm) == (point, arm)}
            )
            for arm in SHARED
        }
        for point in POINTS
    }
    up = "speed-up over cloud (simulated)"
    draw(out / "predicted-speedup.png", speeds, "RTT, ms", up)
    up = "tokens/s of each (simulated)"
    draw(out / "predicted-capacity.png", rates, "clients of one verifier", up)


def _means(values: Mapping[float, float]) -> dict[float, Mean]:
    return {at: Mean(value) for at, value in values.items()}


if __name__ == "__main__":
    typer.run(main)
