"""`python -m bench report` reports results as tables, a plot and Markdown: the
costs of an arm, and speed-ups of arm over arm.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from rich.console import Console

from bench import options
from bench.prompts import FAMILIES, root, scenario_of
from bench.results import (
    Answer,
    Key,
    Results,
    link_name,
    load,
    references,
    same_texts,
    with_rate,
)
from bench.statistics import (
    WAITS_PASSES,
    Mean,
    draw,
    gap_ms,
    grid,
    mean,
    rate,
    waiting,
)
from bench.statistics import (
    markdown as table,
)
from local_models.llama_cpp.prefix import common_prefix

# Computes the costs of an arm's answers over one link, and the figures that compare arms.

COLOCATED: Final = "colocated-edge"

LONG_WORK: Final = (
    "Nothing was warmed up. An answer in one piece has no rate, and is in no speed-up. Tokens "
    "are means over turns; the first draft token is timed from the request, and `never` counts "
    "the turns in which the draft model had none. Origins are those of "
    "[the stream](api.md#watching-speculation), in shares of the answers' tokens."
)


def cost(answers: Sequence[Answer], compared: Comparison) -> dict[str, str]:
    """Return an arm's costs over a link by their column headings."""

    def total(field: str) -> float:
        return float(sum(getattr(answer, field) for answer in answers))

    tokens, seconds, judged = total("tokens"), total("seconds"), total("drafted")
    same = same_texts(answers, compared.cloud)
    pass_ms = gap_ms(compared.cloud.values(), 50)
    return {
        "tokens/s": f"{rate(with_rate(answers)):.2f}",
        "s/answer": f"{seconds / len(answers):.2f}",
        "TTFT p50 ms": f"{np.median([a.ttft_ms for a in answers]):.0f}",
        "gap p50 ms": f"{gap_ms(answers, 50):.0f}",
        "gap p99 ms": f"{gap_ms(answers, 99):.0f}",
        f"in gaps > {WAITS_PASSES:g} passes": f"{waiting(answers, pass_ms):0.1%}",
        "passes/token": f"{total('target_passes') / tokens:.2f}",
        "accepted of judged": f"{total('accepted') / judged:0.0%}" if judged else "",
        "drafted/token": f"{total('draft_model_tokens') / tokens:.2f}",
        "bytes up/token": f"{total('bytes_up') / tokens:.1f}",
        "bytes down/token": f"{total('bytes_down') / tokens:.1f}",
        "edge CPU ms/token": f"{1000 * total('edge_cpu_s') / tokens:.0f}",
        "stolen ms/s": f"{1000 * total('stolen_s') / seconds:.0f}",
        "same text as cloud": f"{sum(same)}/{len(same)}",
    }


def figures(compared: Comparison, arm: str, link: Link) -> dict[str, str]:
    """Return an arm's figures over a link and all families, by name; "" if there is none."""
    answers = compared.of(arm, link)
    costs = cost(answers, compared) if answers else defaultdict(str)
    own_ms = gap_ms(answers, 99)
    clouds_ms = gap_ms(compared.cloud.values(), 99)  # over all links: it depends on none
    kinds = {name.partition(":")[0] for name in compared.arms}
    return {
        "times as fast as `cloud`": str(compared.speedup(arm, link, compared.families) or ""),
        **{
            f"times as fast as `{kind}`, at its best": _against(compared, arm, kind, link)
            for kind in (*ROUNDS, *RIVALS, COLOCATED)
            if kind in kinds
        },
        "gap p99, times `cloud`'s": f"{own_ms / clouds_ms:.2f}" if own_ms and clouds_ms else "",
        "passes per token": costs["passes/token"],
        "bytes up per token": costs["bytes up/token"],
        "bytes down per token": costs["bytes down/token"],
        "texts as `cloud`'s": costs["same text as cloud"].replace("/", " of "),
    }


def _against(compared: Comparison, arm: str, kind: str, link: Link) -> str:
    best = compared.best(kind, link)
    faster = best and compared.against(arm, best, link)
    return f"{faster} (`{best}`)" if faster else ""


def long_work(compared: Comparison, link: Link) -> str:
    """Return a Markdown table of arms and kinds of turns; "" without scenarios."""
    cells = {
        ((arm, family), heading): value
        for arm in compared.arms
        for family in compared.families
        if root(family) in FAMILIES
        if (answers := [a for a in compared.of(arm, link) if a.family == family])
        for heading, value in _long_figures(answers, compared).items()
    }
    return table(*grid(("arm", "turns"), cells)) if cells else ""


def _long_figures(answers: Sequence[Answer], compared: Comparison) -> dict[str, str]:
    first_ms = [a.first_draft_ms for a in answers if a.first_draft_ms is not None]
    clouds_ms = [compared.cloud[a.asked].ttft_ms for a in answers if a.asked in compared.cloud]
    ttft_ms = float(np.median([a.ttft_ms for a in answers]))
    against = f"{ttft_ms / np.median(clouds_ms):.2f}" if clouds_ms else ""
    return {
        "count": str(len(answers)),
        "without a rate": str(sum(not a.shows_rate for a in answers)),
        "TTFT p50 ms": f"{ttft_ms:.0f}",
        "of `cloud`'s": against,
        "first draft p50 ms": f"{np.median(first_ms):.0f}" if first_ms else "",
        "never": str(len(answers) - len(first_ms)) if any(a.origins for a in answers) else "",
        "prompt": _mean(answers, "prompt_tokens"),
        "target read": _mean(answers, "read_tokens"),
        "draft model read": _mean(answers, "draft_model_read_tokens"),
        "answer": _mean(answers, "tokens"),
        "whose tokens": _origins(answers),
    }


def _mean(answers: Sequence[Answer], field: str) -> str:
    return f"{np.mean([getattr(answer, field) for answer in answers]):.0f}"


def _origins(answers: Sequence[Answer]) -> str:
    counted: Counter[str] = Counter()
    for answer in answers:
        counted.update(answer.origins)
    total = counted.total()
    return ", ".join(f"{name} {count / total:0.0%}" for name, count in counted.most_common())


# Computes speed-ups of one run, arm against arm, and each policy's best round length.

ROUNDS = ("sync", "paper", "colocated")
"""Arms of these kinds have a round length."""

RIVALS = ("cloud-ngram", "cloud-suffix", "cloud-draft")
"""Arms of these kinds are vLLM's own speculation; their number is that of the tokens it
drafts."""

Link = tuple[float, float | None]
"""A link is named by its rtt_ms and its rate_mbit."""


class Comparison:
    """A Comparison has the answers of a run at one temperature."""

    def __init__(self, results: Results, temperature: float) -> None:
        self.answers = [a for a in results.answers if a.temperature == temperature]
        self.cloud = references(self.answers)
        self.arms = list(dict.fromkeys(a.arm for a in self.answers))
        self.families = list(dict.fromkeys(a.family for a in self.answers))
        links: dict[Link, None] = dict.fromkeys((a.rtt_ms, a.rate_mbit) for a in self.answers)
        self.links = list(links)

    def of(self, arm: str, link: Link) -> list[Answer]:
        """Return an arm's answers over a link; all of `edge-only`, which has no link."""
        own = (a for a in self.answers if a.arm == arm)
        return [a for a in own if arm == "edge-only" or (a.rtt_ms, a.rate_mbit) == link]

    def speedup(self, arm: str, link: Link, families: Sequence[str]) -> Mean | None:
        """Return the geometric mean against cloud; None if the arm was not asked."""
        own = (a for a in self.of(arm, link) if a.family in families)
        return _faster(own, self.cloud)

    def against(self, arm: str, other: str, link: Link) -> Mean | None:
        """Return how much faster `arm` is than `other`, over all families."""
        return _faster(self.of(arm, link), {a.asked: a for a in self.of(other, link)})

    def best(self, kind: str, link: Link) -> str | None:
        """Return the arm of a kind whose round length is fastest over this link."""
        best_speeds = {
            arm: measured.value
            for arm in self.arms
            if arm.partition(":")[0] == kind
            and (measured := self.speedup(arm, link, self.families))
        }
        return max(best_speeds, key=lambda arm: best_speeds[arm]) if best_speeds else None


def _faster(answers: Iterable[Answer], others: Mapping[Key, Answer]) -> Mean | None:
    """Return how much faster answers are than others to the same questions. All kinds of turns
    of a scenario's family count as one family."""
    ratios = (
        (root(a.family), a.prompt, a.tokens_per_s / others[a.asked].tokens_per_s)
        for a in answers
        if a.asked in others and a.shows_rate and others[a.asked].shows_rate
    )
    return mean(ratios, scenario_of)


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
        runs = load(results, Results)
    if not runs.answers:
        raise typer.BadParameter(f"{results} holds no answers")
    plot = results.with_name(f"{results.stem}-speedup.png") if plots else None
    if plot:
        compared = Comparison(runs, runs.answers[0].temperature)
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
        try:
            draw(plot, panels, "RTT, ms", "speed-up over cloud")
        except ImportError:
            sys.exit("plots need matplotlib: pip install matplotlib, or --no-plots")
    page = results.with_suffix(".md")
    page.write_text(markdown(runs, plot))
    Console().print(*map(str, filter(None, (page, plot))), sep="\n")
