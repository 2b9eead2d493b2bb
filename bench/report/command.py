"""`picospec bench report` and `join` process the files of `run`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console

from picospec.bench import options
from picospec.bench.data.prompts import root
from picospec.bench.data.results import Answer, Key, Results, link_name, load, rows, save
from picospec.bench.data.statistics import grid
from picospec.bench.data.statistics import markdown as table
from picospec.bench.report.figures import LONG_WORK, Comparison, cost, figures, long_work
from picospec.models.llama_cpp.model import common_prefix

# Writes a report as Markdown: results and conditions, with a link to the plot.

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
    "`python -m picospec.bench.identity` asks for log-probabilities and says how near."
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
        **{f"link {name}": value for name, value in results.link.items()},
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
    if found := differences(compared.answers, compared.cloud):
        parts += ["### Other texts than cloud's", DIFFERENT, table(DIFFERENCES, found)]
    return parts


def _speedups(compared: Comparison, families: Sequence[str]) -> str:
    speedups = {
        ((arm,), link_name(*link)): str(compared.speedup(arm, link, families) or "")
        for arm in compared.arms
        for link in compared.links
    }
    return table(*grid(("arm",), speedups))


def differences(
    answers: Sequence[Answer], cloud: Mapping[Key, Answer]
) -> list[tuple[str, ...]]:
    """Return a table line (columns: DIFFERENCES) for each text that differs from cloud's."""
    lines: list[tuple[str, ...]] = []
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
