"""`picospec bench simulate` and `agree`: what each arm would do at each distance."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import options
from bench.data.files import load
from bench.data.results import Results
from bench.link.path import Conditions
from bench.simulator import agree as agreeing
from bench.simulator.hosts import hosts_of
from bench.simulator.table import ARMS, SimulatedRow, candidates, groups, rows, speedups
from bench.simulator.world import World
from bench.traces.files import load_folder


def simulate(
    traces: options.Traces,
    rtt: Annotated[str, typer.Option(help="Round trips in ms.")] = "10,50,100,200",
    arms: Annotated[str, typer.Option(help="E.g. cloud,sync,paper:4.")] = ",".join(ARMS),
    families: options.Families = "",
    hosts: options.Hosts = "cpu",
    jitter_ms: Annotated[float, typer.Option()] = 0.0,
    rate_mbit: Annotated[float | None, typer.Option()] = None,
    out: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Replay traces in the simulator; rounds are taken at their best gamma, cell by cell."""
    try:
        names, rtts_ms = arms.split(","), options.numbers(rtt)
        links = [Conditions(rtt_ms, jitter_ms, rate_mbit) for rtt_ms in rtts_ms]
        world = World(hosts_of(hosts), links[0])
        for name in names:
            candidates(name)
        found = groups(traces, options.names(families))
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    simulated = [row for group in track(found) for row in rows(world, [group], rtts_ms, names)]
    _write(simulated, hosts, out)
    for temperature, some in groupby(simulated, key=lambda row: row.temperature):
        Console().print(table_of(list(some), f"speed-up over cloud, T = {temperature:g}"))


def agree(
    measured: Annotated[Path, typer.Argument(help="What `run` wrote.")],
    traces: options.Traces,
    hosts: options.Hosts,
    arms: Annotated[str, typer.Option(help="All, if not given.")] = "",
    out: Annotated[Path | None, typer.Option("--json", help="For the prediction.")] = None,
) -> None:
    """Compare simulated speed-ups with measured ones, cell by cell."""
    try:
        run = load(measured, Results)
        predicted = list(agreeing.predict(run, load_folder(traces), hosts_of(hosts)))
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    _write(predicted, hosts, out)
    wanted = options.names(arms)
    cells = [c for c in agreeing.compare(predicted, run) if not wanted or c.arm in wanted]
    console = Console()
    title = "speed-up over cloud, simulated / measured; ! beyond 10 %"
    console.print(title, agreeing.table(cells))
    console.print(*agreeing.summary(cells), sep="\n")


def _write(found: Sequence[SimulatedRow], hosts: str, path: Path | None) -> None:
    if path:
        document = {"host": hosts, "simulated": True, "rows": found}
        path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1))


def table_of(found: Sequence[SimulatedRow], title: str) -> Table:
    """Return arms and families down, round trips across."""
    rtts_ms = sorted({row.rtt_ms for row in found})
    table = Table("arm", "family", *(f"{ms:g} ms" for ms in rtts_ms), title=title)
    for (arm, family), cells in speedups(found).items():
        table.add_row(arm, family, *(f"{cells[ms]:.2f}" for ms in rtts_ms))
    return table
