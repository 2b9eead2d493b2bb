"""`picospec bench report`: Markdown with what was measured, on what, and plots beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bench.report.differences import differences
from bench.report.live_table import figures
from bench.report.results import Answer, Results, rate
from bench.report.speedups import Comparison, Link
from bench.report.statistics import Mean

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
    lines = _table(("what", "value"), ((name, _plain(value)) for name, value in facts.items()))
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
    parts += [part for arm in compared.arms if arm == OURS for part in _glance(compared, arm)]
    for link in compared.links:
        parts += [f"### Costs at {_named(link)}", _costs(compared, link)]
    return [*parts, *_differences(compared)]


def _glance(compared: Comparison, arm: str) -> list[str]:
    lines = [
        (name, *(value(link) for link in compared.links))
        for name, value in figures(compared, arm).items()
    ]
    return [f"### {arm} over distance", _table(("", *map(_named, compared.links)), lines)]


def _differences(compared: Comparison) -> list[str]:
    found = differences(compared.answers, compared.cloud)
    if not found:
        return []
    head = (
        "arm",
        "link",
        "prompt",
        "repeat",
        "at character",
        "cloud goes on",
        "the arm goes on",
    )
    lines = (
        (
            each.arm, _named(each.link), each.prompt, str(each.repeat), str(each.at),
            _quoted(each.cloud), _quoted(each.said),
        )
        for each in found
    )  # fmt: skip
    return ["### Other texts than cloud's", DIFFERENT, _table(head, lines)]


def _quoted(text: str) -> str:
    """Return text that stays within its cell."""
    return f"`{text!r}`".replace("|", "\\|")


def _speedups(compared: Comparison, families: Sequence[str]) -> str:
    lines = [
        (arm, *(_shown(compared.speedup(arm, link, families)) for link in compared.links))
        for arm in compared.arms
    ]
    return _table(("arm", *map(_named, compared.links)), lines)


def _costs(compared: Comparison, link: Link) -> str:
    head = (
        "arm", "tokens/s", "s/answer", "TTFT p50 ms", "gap p50 ms", "gap p99 ms",
        "passes/token", "accepted of judged", "guessed/token", "bytes up/token",
        "bytes down/token", "edge CPU ms/token", "stolen ms/s", "same text as cloud",
    )  # fmt: skip
    found = ((arm, compared.of(arm, link)) for arm in compared.arms)
    return _table(head, ((arm, *_cost(a, compared)) for arm, a in found if a))


def _cost(answers: Sequence[Answer], compared: Comparison) -> list[str]:
    tokens = sum(a.tokens for a in answers)
    judged = sum(a.drafted for a in answers)
    gaps_ms = [gap for a in answers for gap in a.gaps_ms] or [0.0]
    same = [
        a.text == compared.cloud[a.asked].text for a in answers if a.asked in compared.cloud
    ]
    return [
        f"{rate(answers):.2f}",
        f"{sum(a.seconds for a in answers) / len(answers):.2f}",
        f"{np.median([a.ttft_ms for a in answers]):.0f}",
        f"{np.percentile(gaps_ms, 50):.0f}",
        f"{np.percentile(gaps_ms, 99):.0f}",
        f"{sum(a.target_passes for a in answers) / tokens:.2f}",
        f"{sum(a.accepted for a in answers) / judged:.0%}" if judged else "",
        f"{sum(a.guessed for a in answers) / tokens:.2f}",
        f"{sum(a.bytes_up for a in answers) / tokens:.1f}",
        f"{sum(a.bytes_down for a in answers) / tokens:.1f}",
        f"{sum(a.edge_cpu_s for a in answers) / tokens * 1000:.0f}",
        f"{sum(a.stolen_s for a in answers) / sum(a.seconds for a in answers) * 1000:.0f}",
        f"{sum(same)}/{len(same)}",
    ]


def _named(link: Link) -> str:
    rtt_ms, rate_mbit = link
    return f"{rtt_ms:g} ms" + ("" if rate_mbit is None else f", {rate_mbit:g} Mbit/s")


def _shown(value: Mean | None) -> str:
    return "" if value is None else str(value)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))
