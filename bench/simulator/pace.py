"""`python -m bench pace` simulates passes of a GPU, of 6 to 72 ms.

In each *cell* (operating point, round trip, number of sessions and family) the product stands
beside the best rival without a head (the target alone, n-grams or suffix decoding, at the best
of their settings) and beside a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, cycle, groupby, islice, product
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from bench import options
from bench.files import save
from bench.link import Conditions
from bench.long_work import root
from bench.simulator.hosts import TWICE_AT, World, gpu
from bench.simulator.made_up import made_up
from bench.simulator.rivals import SUFFIX_SETTINGS, Speculation, has_suffix, head, ngram, suffix
from bench.simulator.source import Source, traced
from bench.simulator.world import Arm, picospec
from bench.simulator.world import simulate as answers_of
from bench.statistics import geometric_mean
from bench.tables import grid, markdown
from bench.traces import load_folder

POINTS: Final = "6/5,10/5,25/5,25/24,72/24"
RTTS_MS: Final = "2,10,50,100"
SESSIONS: Final = "1,4,16,64"

ROWS: Final = 2048
"""A pass has at most this many rows, as vLLM limits the tokens of a step on large GPUs."""

MARK: Final = 0.99
"""The product should have at least this share of the best rival's speed in every cell."""

ANSWER_CACHE_TOKENS: Final = 100_000
"""The edge's default."""

NGRAM_TOKENS: Final = (2, 4, 8, 16, 32)
SUFFIX_TOKENS: Final = (8, 32)
HEAD_TOKENS: Final = (3, 4, 5)

HEADS: Final[Mapping[str, float]] = {
    "code": 0.73, "agent": 0.73, "extract": 0.73, "maths": 0.70, "chat": 0.63, "long": 0.63,
}  # fmt: skip
"""A head's tokens are right with this probability, by family. With HEAD_SHARE it then makes
code, maths and chat 2.5, 2.3 and 2.05 times as fast as the target alone, as published for
EAGLE-3 with an 8B target (arXiv:2606.18394); agent and extract are taken for code, and long for
chat."""


class Cell(msgspec.Struct, frozen=True):
    """A Cell has the tokens per second of a session by arm, each with its best settings."""

    point: str
    rtt_ms: float
    sessions: int
    family: str
    rates: dict[str, float]

    @property
    def rival(self) -> str:
        """Return the best arm that has no head and no edge."""
        own = [arm for arm in self.rates if arm not in ("picospec", "cloud-head")]
        return max(own, key=self.rates.__getitem__)

    @property
    def over_rival(self) -> float:
        return self.rates["picospec"] / self.rates[self.rival]

    @property
    def over_head(self) -> float:
        return self.rates["picospec"] / self.rates["cloud-head"]


@dataclass(frozen=True, slots=True)
class Family:
    """A Family has the answers of one kind of work, in the order in which they were asked."""

    name: str
    sources: Sequence[Source]


def families(folder: Path | None, names: Sequence[str]) -> list[Family]:
    """Return the traces of a folder by family, or without a folder made-up answers. Raises
    OSError or ValueError."""
    if folder is None:
        made = made_up().items()
        return [Family(name, some) for name, some in made if not names or name in names]
    traces = sorted(load_folder(folder, names), key=lambda trace: root(trace.family))
    grouped = groupby(traces, key=lambda trace: root(trace.family))
    return [Family(name, [traced(trace) for trace in some]) for name, some in grouped]


def rivals(family: str) -> dict[str, list[Speculation]]:
    """Return the settings of each rival, of which each cell has the best."""
    acceptance = HEADS.get(family, HEADS["chat"])
    rates = {
        "cloud": [Speculation()],
        "cloud-ngram": [ngram(tokens) for tokens in NGRAM_TOKENS],
        "cloud-suffix": [suffix(n, *s) for n, s in product(SUFFIX_TOKENS, SUFFIX_SETTINGS)],
        "cloud-head": [head(tokens, acceptance) for tokens in HEAD_TOKENS],
    }
    if not has_suffix():
        del rates["cloud-suffix"]
    return rates


def asked(sources: Sequence[Source], sessions: int) -> list[list[Source]]:
    """Return what each of so many clients asks: one for all answers, many for one each."""
    each = max(1, min(len(sources), 8 // sessions))
    return [list(islice(cycle(sources), i * each, (i + 1) * each)) for i in range(sessions)]


def cells(
    there: World, point: str, family: Family, sessions: int, rtts_ms: Sequence[float]
) -> Iterator[Cell]:
    """Yield the cells of one number of sessions. Rivals are simulated at the first distance:
    their text comes as fast at any other."""
    clients = asked(family.sources, sessions)
    near = replace(there, conditions=Conditions(rtts_ms[0]))
    best = {
        name: max(_rate(near, Arm(name, rival=each), clients) for each in some)
        for name, some in rivals(family.name).items()
    }
    arm = replace(picospec(), answer_cache_tokens=ANSWER_CACHE_TOKENS)
    for rtt_ms in rtts_ms:
        world = replace(there, conditions=Conditions(rtt_ms))
        rates = {"picospec": _rate(world, arm, clients), **best}
        yield Cell(point, rtt_ms, sessions, family.name, rates)


def _rate(world: World, arm: Arm, clients: Sequence[Sequence[Source]]) -> float:
    answers = answers_of(world, arm, clients)
    return geometric_mean([a.tokens_per_s for a in answers if a.tokens_per_s > 0.0])


def pace(
    traces: Annotated[
        Path | None, typer.Option(help="Folder of `bench record`; else answers are made up.")
    ] = None,
    points: Annotated[str, typer.Option(help="Target/draft, ms.")] = POINTS,
    rtt: options.Rtt = RTTS_MS,
    sessions: Annotated[str, typer.Option(help="At one verifier.")] = SESSIONS,
    families_: Annotated[str, typer.Option("--families")] = "",
    out: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Simulate the product over the best rival without a head, and over a head, on GPUs."""
    with options.checked():
        rtts_ms, counts = options.numbers(rtt), options.counts(sessions)
        texts_by_family = families(traces, options.names(families_))
    if not has_suffix():
        typer.echo("suffix decoding is left out: the package arctic-inference is missing")
    simulated: list[Cell] = []
    for point, count in product(options.names(points), counts):
        target_ms, draft_ms = (float(part) for part in point.split("/"))
        hosts = gpu(target_ms / 1e3, draft_ms / 1e3, twice_at=TWICE_AT)
        there = World(hosts, Conditions(), rows=ROWS)
        each = (cells(there, point, family, count, rtts_ms) for family in texts_by_family)
        own = list(chain.from_iterable(each))
        typer.echo(table(own, f"{point} ms, {count} sessions"))
        simulated += own
        if out:
            save({"simulated": True, "cells": simulated}, out)
    low = [cell for cell in simulated if cell.over_rival < MARK]
    typer.echo(f"{len(low)} of {len(simulated)} cells under {MARK} of the best rival")


def table(cell_list: Sequence[Cell], title: str) -> str:
    """Return a table with families as lines. Rivals are shown over `cloud`, and the product
    over the best rival and over the head, by distance; ! marks less than MARK of a rival."""
    places: dict[tuple[tuple[str, ...], str], str] = {}
    for cell in cell_list:
        line, alone = (cell.family,), cell.rates["cloud"]
        places[line, "cloud"] = f"{alone:.1f}/s"
        rival = f"{cell.rates[cell.rival] / alone:.2f} {cell.rival.removeprefix('cloud-')}"
        places[line, "rival"] = rival
        places[line, "head"] = f"{cell.rates['cloud-head'] / alone:.2f}"
    for cell in cell_list:
        mark = "!" if cell.over_rival < MARK else ""
        ratios = f"{cell.over_rival:.2f}{mark} {cell.over_head:.2f}"
        places[(cell.family,), f"{cell.rtt_ms:g} ms"] = ratios
    return f"{title}\n\n{markdown(*grid(('family',), places))}\n"
