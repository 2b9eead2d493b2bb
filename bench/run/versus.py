"""Compares the speed of two checkouts of PicoSpec, which take turns on one host.

    python -m bench.run.versus --old DIR --new DIR --out DIR [options of `bench run`]

Each checkout runs `bench run` on each slice of the prompts, in the order old new, new old, old
new, so that a drift in the host's speed affects both alike. Answers to the same prompt and seed
over the same link are paired. The arm `cloud` is the control: its ratio shows the drift of the
host alone. Both run in this Python environment, and PYTHONPATH selects the code that it
imports, even in the processes that vLLM spawns. A finished turn is not run again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, groupby, product
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from bench import options
from bench.files import load
from bench.prompts import Prompt, read
from bench.results import Answer
from bench.statistics import mean

MIN_RATIO: Final = 0.97
MAX_WIDTH: Final = 0.06
"""The 95 % interval must begin at MIN_RATIO or above; a wider one needs more prompts."""

BENCH_OPTIONS: Final = ("--arms", "cloud,picospec", "--rtt", "10,100", "--repeats", "1")
"""`bench run` has these options unless the command line has others."""

Turn = tuple[str, Path]
"""A Turn names the checkout, "old" or "new", and the file of its prompts."""

Key = tuple[str, str, float, float, int]
"""Identifies an answer: arm, prompt, round trip in ms, temperature and repeat."""


class Measured(msgspec.Struct, frozen=True):
    """Only this part of a file of `bench run` is compared."""

    answers: list[Answer]


def results(turn: Turn) -> Path:
    """Return the file that `bench run` writes in this turn."""
    return turn[1].with_suffix(f".{turn[0]}.json")


def deal(prompts: Sequence[Prompt], slices: int, folder: Path) -> list[Path]:
    """Write the prompts to files by turns; each file has some of every family, and whole
    conversations."""
    groups = groupby(prompts, key=lambda prompt: prompt.scenario or prompt.id)
    divided = sorted((list(turns) for _, turns in groups), key=lambda turns: turns[0].root)
    for n, path in enumerate(paths := [folder / f"slice{n}.jsonl" for n in range(slices)]):
        path.write_bytes(msgspec.json.Encoder().encode_lines(chain(*divided[n::slices])))
    return paths


def run(turn: Turn, checkout: Path, more: Sequence[str]) -> None:
    """Measure one turn, unless it is finished. Raises CalledProcessError."""
    if (finished := results(turn)).exists():
        return
    unfinished = finished.with_suffix(".unfinished")
    files = ("--prompts", str(turn[1]), "--json", str(unfinished))
    command = (sys.executable, "-m", "bench", "run", *BENCH_OPTIONS, *more, *files)
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    subprocess.run(command, cwd=checkout, env=environment, check=True)
    unfinished.rename(finished)


def measured(side: str, slices: Sequence[Path]) -> dict[Key, Answer]:
    """Return the answers of a checkout."""
    files = [load(results((side, prompts)), Measured) for prompts in slices]
    answers = [answer for file in files for answer in file.answers]
    return {(a.arm, a.prompt, a.rtt_ms, a.temperature, a.repeat): a for a in answers}


def report(old: Mapping[Key, Answer], new: Mapping[Key, Answer]) -> Iterator[str]:
    """Yield a line for each arm and kind of speed, and one on texts that differ."""
    pairs = [(old[key], new[key]) for key in sorted(old.keys() & new.keys())]
    speeds: Mapping[str, Callable[[Answer], float]] = {
        "tokens/s": lambda answer: answer.tokens_per_s,
        "1 / time to first token": lambda answer: 1 / answer.ttft_ms,
    }
    for arm, (name, of) in product(sorted({a.arm for a, _ in pairs}), speeds.items()):
        ratios = [(a.family, a.prompt, of(b) / of(a)) for a, b in pairs if a.arm == arm]
        yield verdict(f"{arm}: {name}, new/old", ratios)
    yield f"{sum(a.text != b.text for a, b in pairs)} of {len(pairs)} texts differ"


def verdict(name: str, ratios: Sequence[tuple[str, str, float]]) -> str:
    """Return the mean of (family, prompt, ratio), its interval, and whether they suffice."""
    ratio = mean(ratios)
    if ratio is None or ratio.low is None or ratio.high is None:
        return f"{name}: {ratio}; one prompt a family gives no interval"
    suffices = ratio.low >= MIN_RATIO and ratio.high - ratio.low <= MAX_WIDTH
    interval = f"[{ratio.low:.3f}, {ratio.high:.3f}], width {ratio.high - ratio.low:.3f}"
    return f"{name}: {ratio.value:.3f} {interval}: {'yes' if suffices else 'NO'}"


def main(
    context: typer.Context,
    old: Annotated[Path, typer.Option(help="The checkout before the change.")],
    new: Annotated[Path, typer.Option(help="The checkout after it.")],
    out: Annotated[Path, typer.Option(help="Folder for slices and results.")],
    families: options.Families = "code,maths,chat",
    per_family: Annotated[int, typer.Option(help="Prompts of each family.")] = 8,
    slices: Annotated[int, typer.Option(help="Turns of each checkout.")] = 4,
) -> None:
    """Measure both checkouts by turns. Options it does not know go to `bench run`."""
    checkouts = {"old": old.resolve(), "new": new.resolve()}
    out.mkdir(parents=True, exist_ok=True)
    prompts = read(families=options.names(families), per_family=per_family)
    divided = deal(prompts, slices, out.resolve())
    for n, own in enumerate(divided):
        for side in ("old", "new") if n % 2 == 0 else ("new", "old"):
            run((side, own), checkouts[side], context.args)
    typer.echo("\n".join(report(measured("old", divided), measured("new", divided))))


if __name__ == "__main__":
    app = typer.Typer()
    app.command(context_settings=options.VERIFIER_OPTIONS)(main)
    app()
