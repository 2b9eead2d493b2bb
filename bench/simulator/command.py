"""`python -m bench.simulator.command`: what each arm would do at each distance, from recorded traces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.calibrate import speeds
from bench.link.path import Conditions
from bench.simulator.hosts import CPU_BOX, Hosts, gpu
from bench.simulator.source import traced
from bench.simulator.table import ARMS, Group, Row, candidates, rows, speedups
from bench.simulator.world import World
from bench.traces.files import Trace


def main(
    traces: Annotated[Path, typer.Option(help="Folder that `bench record` wrote.")],
    rtt: Annotated[str, typer.Option(help="Round trips in ms.")] = "10,50,100,200",
    arms: Annotated[str, typer.Option(help="E.g. cloud,sync,paper:4.")] = ",".join(ARMS),
    families: Annotated[str, typer.Option(help="All, if not given.")] = "",
    hosts: Annotated[
        str, typer.Option(help="cpu; 72/24: ms a pass, ms a draft; or a file of `speeds`.")
    ] = "cpu",
    jitter_ms: Annotated[float, typer.Option()] = 0.0,
    rate_mbit: Annotated[float | None, typer.Option()] = None,
    json_out: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Replay traces in the simulator; rounds are taken at their best gamma, cell by cell."""
    try:
        names, rtts_ms = arms.split(","), [float(ms) for ms in rtt.split(",")]
        links = [Conditions(rtt_ms, jitter_ms, rate_mbit) for rtt_ms in rtts_ms]
        world = World(hosts_of(hosts), links[0])
        for name in names:
            candidates(name)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    groups = load(traces, families.split(",") if families else [])
    if not groups:
        raise typer.BadParameter(f"no traces of these families in {traces}")
    found = [row for group in track(groups) for row in rows(world, [group], rtts_ms, names)]
    if json_out:
        document = {"host": hosts, "simulated": True, "rows": [asdict(row) for row in found]}
        json_out.write_text(json.dumps(document, indent=1))
    for temperature, some in groupby(found, key=lambda row: row.temperature):
        Console().print(table_of(list(some), f"speed-up over cloud, T = {temperature:g}"))


def hosts_of(text: str) -> Hosts:
    """Return CPU_BOX for "cpu", flat hosts for "72/24" or, with a draft beside, "72/24/8", and
    what `speeds` measured for the name of its file.

    Raises ValueError for anything else, OSError for a file that cannot be read.
    """
    if text == "cpu":
        return CPU_BOX
    if text.endswith(".json"):
        return speeds.load(Path(text)).hosts
    times_ms = text.split("/")
    if len(times_ms) not in (2, 3):
        raise ValueError(f"no hosts {text!r}: give cpu, or target/draft in ms, as 72/24")
    target_s, draft_s, *beside_s = (float(ms) / 1000 for ms in times_ms)
    return gpu(target_s, draft_s, beside_s[0] if beside_s else None)


def load(folder: Path, families: Sequence[str]) -> list[Group]:
    """Read the traces of a folder, grouped by temperature and family. Empty: all families."""
    found = [Trace.load(path) for path in sorted(folder.glob("*.npz"))]
    wanted = [trace for trace in found if not families or trace.family in families]
    wanted.sort(key=lambda trace: (trace.temperature, trace.family))
    return [
        Group(family, temperature, [traced(trace) for trace in some])
        for (temperature, family), some in groupby(
            wanted, key=lambda trace: (trace.temperature, trace.family)
        )
    ]


def table_of(found: Sequence[Row], title: str) -> Table:
    """Return arms and families down, round trips across."""
    rtts_ms = sorted({row.rtt_ms for row in found})
    table = Table("arm", "family", *(f"{ms:g} ms" for ms in rtts_ms), title=title)
    for (arm, family), cells in speedups(found).items():
        table.add_row(arm, family, *(f"{cells[ms]:.2f}" for ms in rtts_ms))
    return table


if __name__ == "__main__":
    typer.run(main)
