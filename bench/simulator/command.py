"""`picospec bench simulate` and `agree` simulate each arm at each distance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from picospec.bench import options
from picospec.bench.data.results import Results, load, references, save
from picospec.bench.data.statistics import WAITS_PASSES, console, grid
from picospec.bench.link import Conditions
from picospec.bench.simulator.hosts import Hosts, hosts_of
from picospec.bench.simulator.source import Source, traced
from picospec.bench.simulator.table import (
    ARMS,
    Group,
    SimulatedRow,
    candidates,
    groups,
    rows,
    speedups,
)
from picospec.bench.simulator.world import World
from picospec.bench.traces import Trace, load_folder


def simulate(
    traces: options.Traces,
    rtt: Annotated[str, typer.Option(help="Round trips in ms.")] = "10,50,100,200",
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
        found = groups(traces, options.names(families))
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
    with options.checked():
        run = load(measured, Results)
        predicted = list(predict(run, load_folder(traces), hosts_of(hosts)))
    cells = compare(predicted, run)
    title = "speed-up over cloud, simulated / measured; ! beyond 10 %"
    Console().print(title, agreement_table(cells))
    Console().print(*summary(cells), sep="\n")


def table_of(found: Sequence[SimulatedRow], title: str) -> Table:
    """Return a table: arms and families as lines, round trips as columns."""
    cells = {
        (place, f"{rtt_ms:g} ms"): f"{value:.2f}"
        for place, by_rtt in speedups(found).items()
        for rtt_ms, value in by_rtt.items()
    }
    return console(*grid(("arm", "family"), cells), title)


def waiting_table(found: Sequence[SimulatedRow], title: str) -> Table:
    """Return the shares of time in which a reader waits, in a table like the speed-ups'."""
    cells = {((r.arm, r.family), f"{r.rtt_ms:g} ms"): f"{r.waiting:.1%}" for r in found}
    return console(*grid(("arm", "family"), cells), title)


WITHIN: Final = 0.10
"""A prediction agrees with a measurement up to this relative difference."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """An Agreement has a speed-up over cloud, simulated and measured."""

    arm: str
    family: str
    rtt_ms: float
    temperature: float
    simulated: float
    measured: float

    @property
    def agrees(self) -> bool:
        return abs(self.simulated / self.measured - 1.0) <= WITHIN

    def __str__(self) -> str:
        ratio, mark = self.simulated / self.measured, "" if self.agrees else " !"
        return f"{self.simulated:.2f} / {self.measured:.2f} = {ratio:.2f}{mark}"


def compare(simulated: Sequence[SimulatedRow], measured: Results) -> list[Agreement]:
    """Return the cells that both have, in the order of the run."""
    predicted = {row.place: row.speedup_vs_cloud for row in simulated}
    return [
        Agreement(*row.place, predicted[row.place], row.speedup_vs_cloud)
        for row in measured.rows
        if row.place in predicted and row.arm != "cloud"
    ]


def predict(measured: Results, traces: Sequence[Trace], hosts: Hosts) -> Iterator[SimulatedRow]:
    """Yield the simulator's rows for the run's cells. Arms that it does not know are left out.

    Raises a ValueError that names a prompt whose trace is missing or too short, or for a run
    over links with a rate or losses.
    """
    if measured.link.get("loss") or any(row.rate_mbit for row in measured.rows):
        raise ValueError("the run's links had a rate or losses: compared are RTT and jitter")
    for temperature, family in dict.fromkeys((r.temperature, r.family) for r in measured.rows):
        group = Group(family, temperature, _sources(measured, traces, family, temperature))
        cells = [r for r in measured.rows if (r.family, r.temperature) == (family, temperature)]
        for rtt_ms in dict.fromkeys(row.rtt_ms for row in cells):
            arms = [row.arm for row in cells if row.rtt_ms == rtt_ms]
            names = [arm for arm in arms if arm.partition(":")[0] in ARMS]
            conditions = Conditions(rtt_ms, measured.link.get("jitter_ms") or 0.0)
            yield from rows(World(hosts, conditions), [group], [rtt_ms], names)


def _sources(
    measured: Results, traces: Sequence[Trace], family: str, temperature: float
) -> list[Source]:
    lengths: dict[str, int] = {}
    for a in references(measured.answers).values():
        if (a.family, a.temperature) == (family, temperature):
            lengths.setdefault(a.prompt, a.tokens)  # the trace is of the first repeat
    found = {trace.prompt_id: trace for trace in traces if trace.temperature == temperature}
    for prompt, tokens in lengths.items():
        if prompt not in found or len(found[prompt].tokens) < tokens - 2:
            raise ValueError(f"no trace of {prompt} has {tokens} tokens at T = {temperature:g}")
    return [traced(found[prompt].cut(tokens)) for prompt, tokens in lengths.items()]


def agreement_table(found: Sequence[Agreement]) -> Table:
    """Return a table: arms and families as lines, round trips as columns."""
    cells = {
        ((c.arm, f"{c.temperature:g}", c.family), f"{c.rtt_ms:g} ms"): str(c) for c in found
    }
    return console(*grid(("arm", "T", "family"), cells))


def summary(cells: Sequence[Agreement]) -> list[str]:
    """Return a line for each arm with the number of cells in which both agree."""
    agreeing: dict[str, list[bool]] = {}
    for cell in cells:
        agreeing.setdefault(cell.arm, []).append(cell.agrees)
    return [
        f"{arm}: {sum(own)} of {len(own)} cells within {WITHIN:.0%}"
        for arm, own in agreeing.items()
    ]
