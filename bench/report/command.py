"""`picospec bench report` and `join`: what is made of the files of `run`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from picospec.bench.data.files import load, save
from picospec.bench.data.results import Results
from picospec.bench.report.join import joined
from picospec.bench.report.markdown import markdown


def report(
    results: Annotated[Path, typer.Argument(help="What `run` wrote.")],
    plots: Annotated[bool, typer.Option(help="Draw one: needs matplotlib.")] = True,
) -> None:
    """Write OUT.md, and a plot as PNG, next to the results."""
    try:
        found = load(results, Results)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    if not found.answers:
        raise typer.BadParameter(f"{results} holds no answers")
    plot = results.with_name(f"{results.stem}-speedup.png") if plots else None
    if plot:
        try:
            from picospec.bench.report.plots import draw
        except ImportError:
            sys.exit("plots need matplotlib: pip install 'picospec[bench]', or --no-plots")
        draw(found, plot)
    page = results.with_suffix(".md")
    page.write_text(markdown(found, plot))
    Console().print(*map(str, filter(None, (page, plot))), sep="\n")


def join(
    runs: Annotated[list[Path], typer.Argument(help="What `run` wrote, some times.")],
    out: Annotated[Path, typer.Option("--json", help="Where the whole goes.")],
) -> None:
    """Put runs of the same models on one machine together: each is a repeat."""
    try:
        save(joined([load(path, Results) for path in runs]), out)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
