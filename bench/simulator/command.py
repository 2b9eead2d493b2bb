"""`picospec bench simulate` and `agree`: what each arm would do at each distance."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from picospec.bench import options
from picospec.bench.data.files import load, save
from picospec.bench.data.results import WAITS_PASSES, Results
from picospec.bench.data.tables import console, grid
from picospec.bench.link.path import Conditions
from picospec.bench.simulator import agree as agreeing
from picospec.bench.simulator.hosts import hosts_of
from picospec.bench.simulator.table import (
    ARMS,
    SimulatedRow,
    candidates,
    groups,
    rows,
    speedups,
)
from picospec.bench.simulator.world import World
from picospec.bench.traces.files import load_folder


def simulate(
    traces: options.Traces,
    rtt: Annotated[str, typer.Option(help="Round trips in ms.")] = "10,50,100,200",
    arms: Annotated[str, typer.Option(help="E.g. cloud,sync,paper:4.")] = ",".join(ARMS),
    families: options.Families = "",
    hosts: options.Hosts = "cpu",
    out: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Replay traces in the simulator; rounds are taken at their best gamma, cell by cell."""
    try:
        names, rtts_ms = arms.split(","), options.numbers(rtt)
        world = World(hosts_of(hosts), Conditions(min(rtts_ms)))
        for name in names:
            candidates(name)
        found = groups(traces, options.names(families))
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    simulated = [row for group in track(found) for row in rows(world, [group], rtts_ms, names)]
    if out:
        save({"host": hosts, "simulated": True, "rows": simulated}, out)
    for temperature, some in groupby(simulated, key=lambda row: row.temperature):
        cells = list(some)
        Console().print(table_of(cells, f"speed-up over cloud, T = {temperature:g}"))
        title = f"time in gaps > {WAITS_PASSES:g} passes, T = {temperature:g}"
        Console().print(waiting_table(cells, title))


def agree(
    measured: Annotated[Path, typer.Argument(help="What `run` wrote.")],
    traces: options.Traces,
    hosts: options.Hosts,
) -> None:
    """Compare simulated speed-ups with measured ones, cell by cell."""
    try:
        run = load(measured, Results)
        predicted = list(agreeing.predict(run, load_folder(traces), hosts_of(hosts)))
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    cells = agreeing.compare(predicted, run)
    title = "speed-up over cloud, simulated / measured; ! beyond 10 %"
    Console().print(title, agreeing.table(cells))
    Console().print(*agreeing.summary(cells), sep="\n")


def table_of(found: Sequence[SimulatedRow], title: str) -> Table:
    """Return arms and families down, round trips across."""
    cells = {
        (place, f"{rtt_ms:g} ms"): f"{value:.2f}"
        for place, by_rtt in speedups(found).items()
        for rtt_ms, value in by_rtt.items()
    }
    return console(*grid(("arm", "family"), cells), title)


def waiting_table(found: Sequence[SimulatedRow], title: str) -> Table:
    """Return the shares of time in which a reader waits, laid out as the speed-ups are."""
    cells = {((r.arm, r.family), f"{r.rtt_ms:g} ms"): f"{r.waiting:.1%}" for r in found}
    return console(*grid(("arm", "family"), cells), title)
