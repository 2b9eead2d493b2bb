"""What scenarios show beside speed: what each end read, when drafts came, and from where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np

from picospec.bench.data.results import Answer
from picospec.bench.data.scenarios.script import FAMILIES, root
from picospec.bench.data.tables import grid, markdown
from picospec.bench.report.speedups import Comparison, Link

LONG_WORK: Final = (
    "Nothing was warmed up. An answer in one piece has no rate, and is in no speed-up. Tokens "
    "are means over turns; the first draft token is timed from the request, and `never` counts "
    "the turns in which the draft model had none. Origins are those of "
    "[the stream](api.md#watching-speculation), in shares of the answers' tokens."
)


def long_work(compared: Comparison, link: Link) -> str:
    """Return a Markdown table of arms and kinds of turns; "" where no scenario was asked."""
    cells = {
        ((arm, family), heading): value
        for arm in compared.arms
        for family in compared.families
        if root(family) in FAMILIES
        if (answers := [a for a in compared.of(arm, link) if a.family == family])
        for heading, value in _figures(answers, compared).items()
    }
    return markdown(*grid(("arm", "turns"), cells)) if cells else ""


def _figures(answers: Sequence[Answer], compared: Comparison) -> dict[str, str]:
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
    return ", ".join(f"{name} {count / total:.0%}" for name, count in counted.most_common())
