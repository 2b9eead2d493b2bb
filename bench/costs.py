"""Computes an arm's costs over a link, figures that compare arms, and a table of long work."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Final

import numpy as np

from bench.comparison import RIVALS, ROUNDS, Comparison, Link
from bench.long_work import FAMILIES, root
from bench.results import Answer, same_texts, with_rate
from bench.statistics import WAITS_PASSES, gap_ms, rate, waiting
from bench.tables import grid
from bench.tables import markdown as table

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
            for kind in (*ROUNDS, *RIVALS)
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
