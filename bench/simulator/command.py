"""`python -m bench simulate` replays traces through arms at each distance."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from bench import options
from bench.files import save
from bench.link import Conditions
from bench.simulator.comparison import ARMS, SimulatedRow, candidates, groups, rows, speedups
from bench.simulator.hosts import World, hosts_of
from bench.statistics import WAITS_PASSES
from bench.tables import grid, markdown


def simulate(
    traces: options.Traces,
    rtt: options.Rtt = "10,50,100,200",
    arms: Annotated[str, typer.Option(help="E.g. cloud,sync,paper:4.")] = ",".join(ARMS),
    families: options.Families = "",
    hosts: options.Hosts = "cpu",
    out: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Replay traces in the simulator; rounds are taken at their best gamma, cell by cell."""
    with options.checked():
        names, rtts_ms = arms.split(","), options.numbers(rtt)
        world = World(hosts_of(hosts), Conditions(min(rtts_ms)))
        for name in names:
            candidates(name)
        traces_by_family = groups(traces, options.names(families))
    simulated = list(rows(world, track(traces_by_family), rtts_ms, names))
    if out:
        save({"host": hosts, "simulated": True, "rows": simulated}, out)
    for temperature, some in groupby(simulated, key=lambda row: row.temperature):
        cells = list(some)
        typer.echo(table_of(cells, f"speed-up over cloud, T = {temperature:g}"))
        title = f"time in gaps > {WAITS_PASSES:g} passes, T = {temperature:g}"
        typer.echo(waiting_table(cells, title))


def table_of(rows: Sequence[SimulatedRow], title: str) -> str:
    """Return a table: arms and families as lines, round trips as columns."""
    places = speedups(rows).items()
    cells = {
        (p, f"{rtt:g} ms"): f"{x:.2f}" for p, by_rtt in places for rtt, x in by_rtt.items()
    }
    return f"{title}\n\n{markdown(*grid(('arm', 'family'), cells))}\n"


def waiting_table(rows: Sequence[SimulatedRow], title: str) -> str:
    """Return the shares of time in which a reader waits, in a table like the speed-ups'."""
    cells = {((r.arm, r.family), f"{r.rtt_ms:g} ms"): f"{r.waiting:0.1%}" for r in rows}
    return f"{title}\n\n{markdown(*grid(('arm', 'family'), cells))}\n"
