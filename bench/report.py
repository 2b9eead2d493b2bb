"""`python -m bench report` writes a page of Markdown: results and conditions, with a plot."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from bench import options
from bench.comparison import Comparison
from bench.costs import LONG_WORK, cost, figures, long_work
from bench.files import load
from bench.long_work import root
from bench.plot import draw
from bench.results import Answer, Key, Results, link_name
from bench.statistics import Mean
from bench.tables import Line, grid
from bench.tables import markdown as table
from local_models.llama_cpp.prefix import common_prefix

BUSY = (
    "> **Other work ran on this machine when the run began** (load {load}): times are "
    "distorted, and compare at best with one another."
)

OURS = "picospec"
REFERENCE: Final = "edge-only"
"""The texts of this arm are not compared, because they are another model's."""

SHOWN: Final = 24
"""This many characters are shown from where two texts differ."""

DIFFERENCES: Final = (
    "arm", "link", "prompt", "repeat", "at character", "cloud goes on", "the arm goes on"
)  # fmt: skip
DIFFERENT = (
    "In float32 there must be none. In bfloat16 a batch of another shape may turn a near-tie; "
    "`python -m bench.identity` asks for log-probabilities and says how near."
)


def markdown(results: Results, plot: Path | None = None) -> str:
    """Return the whole report. plot: a file that is linked by its name."""
    parts = ["# Bench report", *_conditions(results)]
    for temperature in dict.fromkeys(a.temperature for a in results.answers):
        parts += _temperature(Comparison(results, temperature), temperature)
    if plot:
        parts.append(f"![{plot.stem}]({plot.name})")
    return "\n\n".join(parts) + "\n"


def _conditions(results: Results) -> list[str]:
    host = results.host
    facts = {
        "host": f"{host.processor}, {host.cores} cores, {host.memory_gib:g} GiB, {host.system}",
        "commit": f"{results.commit}{' (files differed)' if results.commit[-1] == '+' else ''}",
        **results.models,
        **results.settings,
    }
    plain = {k: ", ".join(v) if isinstance(v, list) else str(v) for k, v in facts.items()}
    busy = [BUSY.format(load=host.load_before)] if host.busy else []
    return [*busy, table(("what", "value"), plain.items())]


def _temperature(compared: Comparison, temperature: float) -> list[str]:
    parts = [f"## Temperature {temperature:g}"]
    over = {family: [family] for family in compared.families}
    by_root = groupby(sorted(compared.families, key=root), key=root)
    roots = {f"{name}, all turns": list(some) for name, some in by_root}
    over |= {name: some for name, some in roots.items() if len(some) > 1}
    if len(roots) > 1:
        over["geometric mean of the families"] = compared.families
    for title, families in over.items():
        parts += [f"### Speed-up over cloud: {title}", _speedups(compared, families)]
    if OURS in compared.arms:
        over_distance = {
            ((name,), link_name(*link)): value
            for link in compared.links
            for name, value in figures(compared, OURS, link).items()
        }
        parts += [f"### {OURS} over distance", table(*grid(("",), over_distance))]
    for link in compared.links:
        costs = {
            ((arm,), name): value
            for arm in compared.arms
            if (answers := compared.of(arm, link))
            for name, value in cost(answers, compared).items()
        }
        if table_of := long_work(compared, link):
            parts += [f"### Long work at {link_name(*link)}", LONG_WORK, table_of]
        parts += [f"### Costs at {link_name(*link)}", table(*grid(("arm",), costs))]
    if answer_differences := differences(compared.answers, compared.cloud):
        parts += [
            "### Other texts than cloud's",
            DIFFERENT,
            table(DIFFERENCES, answer_differences),
        ]
    return parts


def _speedups(compared: Comparison, families: Sequence[str]) -> str:
    speedups = {
        ((arm,), link_name(*link)): str(compared.speedup(arm, link, families) or "")
        for arm in compared.arms
        for link in compared.links
    }
    return table(*grid(("arm",), speedups))


def differences(answers: Sequence[Answer], cloud: Mapping[Key, Answer]) -> list[Line]:
    """Return a table line (columns: DIFFERENCES) for each text that differs from cloud's."""
    lines: list[Line] = []
    for a in answers:
        if a.arm != REFERENCE and a.asked in cloud and a.text != cloud[a.asked].text:
            text = cloud[a.asked].text
            at = common_prefix(text, a.text)
            where = (a.arm, link_name(a.rtt_ms, a.rate_mbit), a.prompt, str(a.repeat), str(at))
            lines.append((*where, _quoted(text[at:]), _quoted(a.text[at:])))
    return lines


def _quoted(text: str) -> str:
    """Return the beginning of a text, quoted so that it stays within its cell."""
    return f"`{text[:SHOWN]!r}`".replace("|", "\\|")


def _curve(compared: Comparison, arm: str, family: str) -> dict[float, Mean]:
    """Return an arm's speed-ups by round trip, at the first bandwidth."""
    links = [link for link in compared.links if link[1] == compared.links[0][1]]
    speedups = {link[0]: compared.speedup(arm, link, [family]) for link in links}
    return {rtt_ms: speedup for rtt_ms, speedup in speedups.items() if speedup}


def report(
    results: Annotated[Path, typer.Argument(help="What `run` wrote.")],
    plots: Annotated[bool, typer.Option(help="Draw one: needs matplotlib.")] = True,
) -> None:
    """Write OUT.md, and a plot as PNG, next to the results."""
    with options.checked():
        runs = load(results, Results)
    if not runs.answers:
        raise typer.BadParameter(f"{results} holds no answers")
    plot = results.with_name(f"{results.stem}-speedup.png") if plots else None
    if plot:
        compared = Comparison(runs, runs.answers[0].temperature)
        panels = {
            family: {arm: _curve(compared, arm, family) for arm in compared.arms}
            for family in compared.families
        }
        try:
            draw(plot, panels)
        except ImportError:
            sys.exit("plots need matplotlib: pip install matplotlib, or --no-plots")
    page = results.with_suffix(".md")
    page.write_text(markdown(runs, plot))
    Console().print(*map(str, filter(None, (page, plot))), sep="\n")
