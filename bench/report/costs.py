"""What an arm's answers cost over one link, and the figures by which an arm is judged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import numpy as np

from picospec.bench.data.results import (
    WAITS_PASSES,
    Answer,
    gap_ms,
    rate,
    same_texts,
    waiting,
    with_rate,
)
from picospec.bench.report.speedups import RIVALS, ROUNDS, Comparison, Link

COLOCATED: Final = "colocated-edge"


def cost(answers: Sequence[Answer], compared: Comparison) -> dict[str, str]:
    """Return an arm's costs over a link by the headings of their columns."""

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
        f"in gaps > {WAITS_PASSES:g} passes": f"{waiting(answers, pass_ms):.1%}",
        "passes/token": f"{total('target_passes') / tokens:.2f}",
        "accepted of judged": f"{total('accepted') / judged:.0%}" if judged else "",
        "drafted/token": f"{total('draft_model_tokens') / tokens:.2f}",
        "bytes up/token": f"{total('bytes_up') / tokens:.1f}",
        "bytes down/token": f"{total('bytes_down') / tokens:.1f}",
        "edge CPU ms/token": f"{1000 * total('edge_cpu_s') / tokens:.0f}",
        "stolen ms/s": f"{1000 * total('stolen_s') / seconds:.0f}",
        "same text as cloud": f"{sum(same)}/{len(same)}",
    }


def figures(compared: Comparison, arm: str, link: Link) -> dict[str, str]:
    """Return an arm's figures over a link, and all families, by their names; "" for none."""
    answers = compared.of(arm, link)
    costs = cost(answers, compared) if answers else defaultdict(str)
    own_ms = gap_ms(answers, 99)
    clouds_ms = gap_ms(compared.cloud.values(), 99)  # over all links: its gaps depend on none
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
