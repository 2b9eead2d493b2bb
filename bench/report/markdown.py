"""Markdown of a report: what was measured, on what, with links to the plots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bench.data.results import Answer, Results, gap_ms, rate, same_texts
from bench.report.differences import HEAD, differences
from bench.report.over_distance import figures
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


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


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
    lines = [
        (name, *(value(link) for link in compared.links))
        for name, value in figures(compared, OURS).items()
    ]
    return table(("", *map(link_name, compared.links)), lines)


def _costs(compared: Comparison, link: Link) -> str:
    found = ((arm, compared.of(arm, link)) for arm in compared.arms)
    costs = [(arm, _cost(answers, compared)) for arm, answers in found if answers]
    head = ("arm", *costs[0][1])
    return table(head, ((arm, *cost.values()) for arm, cost in costs))


def _cost(answers: Sequence[Answer], compared: Comparison) -> dict[str, str]:
    """Return an arm's costs over a link by the headings of their columns."""

    def total(field: str) -> float:
        return float(sum(getattr(answer, field) for answer in answers))

    tokens, seconds, judged = total("tokens"), total("seconds"), total("drafted")
    same = same_texts(answers, compared.cloud)
    return {
        "tokens/s": f"{rate(answers):.2f}",
        "s/answer": f"{seconds / len(answers):.2f}",
        "TTFT p50 ms": f"{np.median([a.ttft_ms for a in answers]):.0f}",
        "gap p50 ms": f"{gap_ms(answers, 50):.0f}",
        "gap p99 ms": f"{gap_ms(answers, 99):.0f}",
        "passes/token": f"{total('target_passes') / tokens:.2f}",
        "accepted of judged": f"{total('accepted') / judged:.0%}" if judged else "",
        "drafted/token": f"{total('draft_model_tokens') / tokens:.2f}",
        "bytes up/token": f"{total('bytes_up') / tokens:.1f}",
        "bytes down/token": f"{total('bytes_down') / tokens:.1f}",
        "edge CPU ms/token": f"{1000 * total('edge_cpu_s') / tokens:.0f}",
        "stolen ms/s": f"{1000 * total('stolen_s') / seconds:.0f}",
        "same text as cloud": f"{sum(same)}/{len(same)}",
    }
