"""`picospec bench agree`: what the simulator predicts for a run, beside what the run measured.

The same prompts, cut to the same number of tokens; arms, links and temperatures of the run; and
the speeds that `speeds` measured. Nothing of the run's rates enters the prediction.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from bench.link.path import Conditions
from bench.report import results
from bench.report.results import Results
from bench.simulator import command as simulate
from bench.simulator.hosts import Hosts
from bench.simulator.source import Source, traced
from bench.simulator.table import Group, Row, candidates, rows
from bench.simulator.world import World
from bench.traces.files import Trace

WITHIN: Final = 0.10


@dataclass(frozen=True, slots=True)
class Cell:
    """A speed-up over cloud, simulated and measured."""

    arm: str
    family: str
    rtt_ms: float
    temperature: float
    simulated: float
    measured: float

    @property
    def ratio(self) -> float:
        return self.simulated / self.measured

    @property
    def agrees(self) -> bool:
        return abs(self.ratio - 1.0) <= WITHIN


def compare(simulated: Sequence[Row], measured: Results) -> list[Cell]:
    """Return the cells that both have, in the order of the run."""
    predicted = {
        (row.arm, row.family, row.rtt_ms, row.temperature): row.speedup_vs_cloud
        for row in simulated
    }
    keys = ((r, (r.arm, r.family, r.rtt_ms, r.temperature)) for r in measured.rows)
    return [
        Cell(*key, predicted[key], row.speedup_vs_cloud)
        for row, key in keys
        if key in predicted and row.arm != "cloud"
    ]


def predict(measured: Results, traces: Sequence[Trace], hosts: Hosts) -> Iterator[Row]:
    """Yield what the simulator says to the run's cells. Arms it does not know are left out.

    Raises ValueError that names a prompt of which there is no trace, or too short a one; or for
    a run over links with a rate or losses.
    """
    if measured.link.get("loss") or any(row.rate_mbit for row in measured.rows):
        raise ValueError("the run's links had a rate or losses: compared are RTT and jitter")
    for temperature, family in dict.fromkeys((r.temperature, r.family) for r in measured.rows):
        group = Group(family, temperature, _sources(measured, traces, family, temperature))
        cells = [r for r in measured.rows if (r.family, r.temperature) == (family, temperature)]
        for rtt_ms in dict.fromkeys(row.rtt_ms for row in cells):
            names = [row.arm for row in cells if row.rtt_ms == rtt_ms and _known(row.arm)]
            conditions = Conditions(rtt_ms, measured.link.get("jitter_ms") or 0.0)
            yield from rows(World(hosts, conditions), [group], [rtt_ms], names)


def _known(arm: str) -> bool:
    with suppress(ValueError):
        return bool(candidates(arm))
    return False


def _sources(
    measured: Results, traces: Sequence[Trace], family: str, temperature: float
) -> list[Source]:
    lengths: dict[str, int] = {}
    for answer in results.references(measured.answers).values():
        if (answer.family, answer.temperature) == (family, temperature):
            lengths.setdefault(answer.prompt, answer.tokens)  # traced is the first repeat
    found = {trace.prompt_id: trace for trace in traces if trace.temperature == temperature}
    for prompt, tokens in lengths.items():
        if prompt not in found or len(found[prompt].tokens) < tokens - 2:
            raise ValueError(f"no trace of {prompt} has {tokens} tokens at T = {temperature:g}")
    return [traced(found[prompt].cut(tokens)) for prompt, tokens in lengths.items()]


def table(cells: Sequence[Cell]) -> Table:
    """Return arms and families down, round trips across: simulated / measured."""
    rtts_ms = sorted({cell.rtt_ms for cell in cells})
    shown = Table("arm", "T", "family", *(f"{ms:g} ms" for ms in rtts_ms))
    lines = dict.fromkeys((cell.arm, cell.temperature, cell.family) for cell in cells)
    for line in lines:
        by_rtt = {c.rtt_ms: c for c in cells if (c.arm, c.temperature, c.family) == line}
        said = (_said(by_rtt[ms]) if ms in by_rtt else "" for ms in rtts_ms)
        shown.add_row(line[0], f"{line[1]:g}", line[2], *said)
    return shown


def _said(cell: Cell) -> str:
    mark = "" if cell.agrees else " !"
    return f"{cell.simulated:.2f} / {cell.measured:.2f} = {cell.ratio:.2f}{mark}"


def summary(cells: Sequence[Cell]) -> list[str]:
    """Return a line for each arm: in how many cells both agree."""
    said = []
    for arm in dict.fromkeys(cell.arm for cell in cells):
        own = [cell for cell in cells if cell.arm == arm]
        agree = sum(cell.agrees for cell in own)
        said.append(f"{arm}: {agree} of {len(own)} cells within {WITHIN:.0%}")
    return said


def main(
    measured: Annotated[Path, typer.Argument(help="What `run` wrote.")],
    traces: Annotated[Path, typer.Option(help="What `record --answers` wrote for it.")],
    hosts: Annotated[str, typer.Option(help="What `speeds` wrote; or as for `simulate`.")],
    arms: Annotated[str, typer.Option(help="All, if not given.")] = "",
    out: Annotated[Path | None, typer.Option("--json", help="For the prediction.")] = None,
) -> None:
    """Compare simulated speed-ups with measured ones, cell by cell."""
    try:
        run = results.load(measured)
        loaded = [Trace.load(path) for path in sorted(traces.glob("*.npz"))]
        predicted = list(predict(run, loaded, simulate.hosts_of(hosts)))
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    if out:
        document = {"host": hosts, "simulated": True, "rows": [asdict(r) for r in predicted]}
        out.write_text(json.dumps(document, indent=1))
    wanted = arms.split(",") if arms else {row.arm for row in predicted}
    cells = [cell for cell in compare(predicted, run) if cell.arm in wanted]
    console = Console()
    console.print("speed-up over cloud, simulated / measured; ! beyond 10 %", table(cells))
    console.print(*summary(cells), sep="\n")
