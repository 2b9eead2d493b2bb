"""Compares arms by cells: arm, family, temperature and link, at the best gamma."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Final

from bench.results import Cell, figures
from bench.simulator.edge import Answer
from bench.simulator.hosts import World
from bench.simulator.source import Source, traced
from bench.simulator.world import Arm, acespec, colocated, paper, picospec, simulate, sync
from bench.statistics import gap_ms, geometric_mean
from bench.traces import Trace, load_folder

GAMMAS: Final = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)

BRANCHES: Final = (2, 4, 8, 15, 30)
"""`acespec` is tried with these numbers of branches, and with none: 1 and 60 are hardly ever
best."""

ROUNDS: Final[Mapping[str, Sequence[Callable[[int], Arm]]]] = {
    "sync": [sync],
    "paper": [paper],
    "acespec": [paper, *(partial(acespec, branches=count) for count in BRANCHES)],
    "colocated": [colocated],
}
"""These functions make an arm of each kind for a gamma; each prompt has its best one."""

PLAIN: Final[Mapping[str, Arm]] = {
    "cloud": Arm(), "picospec": picospec(),
    "picospec-nofill": picospec("picospec-nofill", fill="never"),
    "picospec-nolookup": picospec("picospec-nolookup", lookup=False),
    "picospec-noown": picospec("picospec-noown", ngram_drafts=False),
}  # fmt: skip

ARMS: Final = (*PLAIN, *ROUNDS)


@dataclass(frozen=True, slots=True)
class Group:
    """A Group has the prompts of one family at one temperature."""

    family: str
    temperature: float
    sources: Sequence[Source]


def groups(folder: Path, families: Sequence[str]) -> list[Group]:
    """Return the traces of some families, or of all, grouped by temperature and family. Raises
    OSError, or ValueError, also without traces."""

    def key(trace: Trace) -> tuple[float, str]:
        return trace.temperature, trace.family

    grouped = groupby(sorted(load_folder(folder, families), key=key), key=key)
    return [
        Group(family, temperature, [traced(trace) for trace in some])
        for (temperature, family), some in grouped
    ]


class SimulatedRow(Cell, frozen=True, kw_only=True):
    """A SimulatedRow is one simulated cell. `tokens_per_s` is a geometric mean over prompts,
    and `drafted` counts all draft tokens, judged or not."""

    gamma: int | None


def candidates(name: str) -> list[Arm]:
    """Return the arms of a name: "sync" is tried at each gamma, "sync:4" at 4. Raises
    ValueError for a name that is not in ARMS."""
    kind, _, gamma = name.partition(":")
    if name in PLAIN:
        return [PLAIN[name]]
    if kind not in ROUNDS or (gamma and not (gamma.isdecimal() and int(gamma))):
        raise ValueError(f"no arm {name!r}: choose from {', '.join(ARMS)}, or give sync:4")
    return [make(int(g)) for make in ROUNDS[kind] for g in ([gamma] if gamma else GAMMAS)]


def rows(
    world: World, over: Iterable[Group], rtts_ms: Sequence[float], names: Sequence[str]
) -> Iterator[SimulatedRow]:
    """Yield a row for each arm, group and round trip. `cloud` is run for each of them."""
    for group in over:
        for rtt_ms in rtts_ms:
            there = replace(world, conditions=replace(world.conditions, rtt_ms=rtt_ms))
            cloud = _answers(there, Arm(), group)
            for name in names:
                yield _best(there, group, name, cloud)


def _best(world: World, group: Group, name: str, cloud: Sequence[Answer]) -> SimulatedRow:
    runs: dict[int, list[list[Answer]]] = {}
    for arm in candidates(name):
        runs.setdefault(arm.gamma, []).append(_answers(world, arm, group))
    best = {gamma: _best_answers(some) for gamma, some in runs.items()}
    gamma, answers = max(best.items(), key=lambda run: _rate(run[1]))
    return SimulatedRow(
        arm=name, family=group.family, temperature=group.temperature, gamma=gamma or None,
        rtt_ms=world.conditions.rtt_ms, rate_mbit=world.conditions.rate_mbit,
        prompts=len(answers), tokens_per_s=_rate(answers),
        speedup_vs_cloud=_rate(answers) / _rate(cloud),
        **figures(answers, gap_ms(cloud, 50)),
    )  # fmt: skip


def _best_answers(runs: Sequence[Sequence[Answer]]) -> list[Answer]:
    """Return each prompt's fastest answer among runs with the same gamma."""
    same = zip(*runs, strict=True)
    return [max(answers, key=lambda answer: answer.tokens_per_s) for answers in same]


def _answers(world: World, arm: Arm, group: Group) -> list[Answer]:
    """Simulate the prompts one by one, the first one twice, so that passes are timed."""
    return simulate(world, arm, [[group.sources[0], *group.sources]])[1:]


def _rate(answers: Sequence[Answer]) -> float:
    return geometric_mean([answer.tokens_per_s for answer in answers])


def speedups(rows: Sequence[SimulatedRow]) -> dict[tuple[str, str], dict[float, float]]:
    """Return {(arm, family): {rtt_ms: speed-up}}; family "all" is the mean over families."""
    cells = [(row.arm, row.family, row.rtt_ms, row.speedup_vs_cloud) for row in rows]
    cells += [(arm, "all", rtt_ms, value) for arm, _, rtt_ms, value in cells]
    table: dict[tuple[str, str], dict[float, float]] = {}
    for (arm, family, rtt_ms), group in groupby(sorted(cells), key=lambda cell: cell[:3]):
        values = [value for *_, value in group]
        table.setdefault((arm, family), {})[rtt_ms] = geometric_mean(values)
    return table
