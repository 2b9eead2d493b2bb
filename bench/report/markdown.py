"""Markdown of a report: what was measured, on what, with links to the plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.data.markdown_table import table
from bench.data.results import Results
from bench.report.costs import cost, figures
from bench.report.differences import HEAD, differences
from bench.report.speedups import Comparison, Link, link_name

BUSY = (
    "> **Other work ran on this machine when the run began** (load {load}): times are "
    "distorted, and compare at best with one another."
)

OURS = "picospec"
DIFFERENT = (
    "In float32 there must be none. In bfloat16 a batch of another shape may turn a near-tie: "
    "`python -m bench.identity` asks for log-probabilities, and says how near each was."
)


def markdown(results: Results, plots: Sequence[Path] = ()) -> str:
    """Return the whole report. plots: files, linked by their names."""
    parts = ["# Bench report", *_conditions(results)]
    for temperature in dict.fromkeys(a.temperature for a in results.answers):
        parts += _temperature(Comparison(results, temperature), temperature)
    parts += [f"![{path.stem}]({path.name})" for path in plots]
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
    lines = table(("what", "value"), ((name, _plain(value)) for name, value in facts.items()))
    return ([BUSY.format(load=host.load_before)] if host.busy else []) + [lines]


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _temperature(compared: Comparison, temperature: float) -> list[str]:
    parts = [f"## Temperature {temperature:g}"]
    for family in compared.families:
        parts += [f"### Speed-up over cloud: {family}", _speedups(compared, [family])]
    if len(compared.families) > 1:
        title = "### Speed-up over cloud: geometric mean of the families"
        parts += [title, _speedups(compared, compared.families)]
    if OURS in compared.arms:
        parts += [f"### {OURS} over distance", _over_distance(compared)]
    for link in compared.links:
        parts += [f"### Costs at {link_name(link)}", _costs(compared, link)]
    if found := differences(compared.answers, compared.cloud):
        parts += ["### Other texts than cloud's", DIFFERENT, table(HEAD, found)]
    return parts


def _speedups(compared: Comparison, families: Sequence[str]) -> str:
    lines = [
        (arm, *(str(compared.speedup(arm, link, families) or "") for link in compared.links))
        for arm in compared.arms
    ]
    return table(("arm", *map(link_name, compared.links)), lines)


def _over_distance(compared: Comparison) -> str:
    columns = [figures(compared, OURS, link) for link in compared.links]
    lines = [(name, *(column[name] for column in columns)) for name in columns[0]]
    return table(("", *map(link_name, compared.links)), lines)


def _costs(compared: Comparison, link: Link) -> str:
    found = ((arm, compared.of(arm, link)) for arm in compared.arms)
    costs = [(arm, cost(answers, compared)) for arm, answers in found if answers]
    head = ("arm", *costs[0][1])
    return table(head, ((arm, *cost.values()) for arm, cost in costs))
