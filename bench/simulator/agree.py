"""What the simulator predicts for a run, compared with what the run measured.

Arms, links, temperatures and prompts are the run's, cut to the same number of tokens. Its rates
do not enter the prediction: the speeds are those that `speeds` measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich.table import Table

from picospec.bench.data.results import Results, references
from picospec.bench.data.tables import console, grid
from picospec.bench.link.path import Conditions
from picospec.bench.simulator.hosts import Hosts
from picospec.bench.simulator.source import Source, traced
from picospec.bench.simulator.table import ARMS, Group, SimulatedRow, rows
from picospec.bench.simulator.world import World
from picospec.bench.traces.files import Trace

WITHIN: Final = 0.10
"""A prediction counts as in agreement up to this relative difference."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """A speed-up over cloud, simulated and measured."""

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
    """Yield what the simulator has for the run's cells. Arms it does not know are left out.

    Raises ValueError that names a prompt of which there is no trace, or too short a one; or for
    a run over links with a rate or losses.
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
            lengths.setdefault(a.prompt, a.tokens)  # the first repeat has a trace
    found = {trace.prompt_id: trace for trace in traces if trace.temperature == temperature}
    for prompt, tokens in lengths.items():
        if prompt not in found or len(found[prompt].tokens) < tokens - 2:
            raise ValueError(f"no trace of {prompt} has {tokens} tokens at T = {temperature:g}")
    return [traced(found[prompt].cut(tokens)) for prompt, tokens in lengths.items()]


def table(found: Sequence[Agreement]) -> Table:
    """Return arms and families down, round trips across."""
    cells = {
        ((c.arm, f"{c.temperature:g}", c.family), f"{c.rtt_ms:g} ms"): str(c) for c in found
    }
    return console(*grid(("arm", "T", "family"), cells))


def summary(cells: Sequence[Agreement]) -> list[str]:
    """Return a line for each arm: in how many cells both agree."""
    agreeing: dict[str, list[bool]] = {}
    for cell in cells:
        agreeing.setdefault(cell.arm, []).append(cell.agrees)
    return [
        f"{arm}: {sum(own)} of {len(own)} cells within {WITHIN:.0%}"
        for arm, own in agreeing.items()
    ]
