"""`picospec bench report` and `join` process the files of `run`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from picospec.bench import options
from picospec.bench.data.files import load, save
from picospec.bench.data.results import Answer, Results, rows
from picospec.bench.report.markdown import markdown
from picospec.bench.report.speedups import Comparison


def report(
    results: Annotated[Path, typer.Argument(help="What `run` wrote.")],
    plots: Annotated[bool, typer.Option(help="Draw one: needs matplotlib.")] = True,
) -> None:
    """Write OUT.md, and a plot as PNG, next to the results."""
    with options.checked():
        found = load(results, Results)
    if not found.answers:
        raise typer.BadParameter(f"{results} holds no answers")
    plot = results.with_name(f"{results.stem}-speedup.png") if plots else None
    if plot:
        try:
            from picospec.bench.data.plots import draw
        except ImportError:
            sys.exit("plots need matplotlib: pip install 'picospec[bench]', or --no-plots")
        compared = Comparison(found, found.answers[0].temperature)
        links = [link for link in compared.links if link[1] == compared.links[0][1]]
        panels = {
            ("", family): {
                arm: {
                    link[0]: faster
                    for link in links
                    if (faster := compared.speedup(arm, link, [family]))
                }
                for arm in compared.arms
            }
            for family in compared.families
        }
        draw(plot, panels, "RTT, ms", "speed-up over cloud")
    page = results.with_suffix(".md")
    page.write_text(markdown(found, plot))
    Console().print(*map(str, filter(None, (page, plot))), sep="\n")


def join(
    runs: Annotated[list[Path], typer.Argument(help="What `run` wrote, some times.")],
    out: Annotated[Path, typer.Option("--json", help="Where the whole goes.")],
) -> None:
    """Put runs of the same models on one machine together: each is a repeat."""
    with options.checked():
        save(joined([load(path, Results) for path in runs]), out)


def joined(found: Sequence[Results]) -> Results:
    """Return the runs as one; the repeats of each are numbered on from those before.

    An answer is compared with cloud's of its own run. The host is the first run's. Raises a
    ValueError that names the difference if the runs are not repeats of one another.
    """
    first, repeats = found[0], 0
    answers: list[Answer] = []
    for each in found:
        for name, ours, theirs in (
            ("models", first.models, each.models),
            ("link", first.link, each.link),
            ("tokens", first.settings["tokens"], each.settings["tokens"]),
            ("processor", first.host.processor, each.host.processor),
        ):
            if ours != theirs:
                raise ValueError(f"{name}: the runs differ, {ours} and {theirs}")
        answers += [
            msgspec.structs.replace(answer, repeat=answer.repeat + repeats)
            for answer in each.answers
        ]
        repeats = 1 + max((answer.repeat for answer in answers), default=-1)
    arms = list(dict.fromkeys(answer.arm for answer in answers))
    settings = {**first.settings, "arms": arms, "repeats": repeats}
    commits = ", ".join(dict.fromkeys(each.commit for each in found))
    return msgspec.structs.replace(
        first, commit=commits, settings=settings, rows=rows(answers), answers=answers
    )
