"""The figures by which an arm is judged, each over the links of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from bench.report.results import Answer
from bench.report.speedups import ROUNDS, Comparison, Link

Figure = Callable[[Link], str]
"""Figure(link): the value as it is printed; "" where it was not measured."""

BESIDE: Final = "colocated-edge"


def figures(compared: Comparison, arm: str) -> dict[str, Figure]:
    """Return the lines of the table: means are geometric, over all families."""
    rivals = [kind for kind in (*ROUNDS, BESIDE) if _asked(compared, kind)]
    return {
        "times as fast as `cloud`": lambda link: _speedup(compared, arm, link),
        **{f"times as fast as `{kind}`, best round": _against(compared, arm, kind)
           for kind in rivals},
        "gap p99, times `cloud`'s": lambda link: _gaps(compared, arm, link),
        "passes per token": _per_token(compared, arm, lambda a: a.target_passes, ".2f"),
        "bytes up per token": _per_token(compared, arm, lambda a: a.bytes_up, ".1f"),
        "bytes down per token": _per_token(compared, arm, lambda a: a.bytes_down, ".1f"),
        "texts as `cloud`'s": lambda link: _same(compared, arm, link),
    }  # fmt: skip


def _asked(compared: Comparison, kind: str) -> bool:
    return any(name.partition(":")[0] == kind for name in compared.arms)


def _speedup(compared: Comparison, arm: str, link: Link) -> str:
    return str(compared.speedup(arm, link, compared.families) or "")


def _against(compared: Comparison, arm: str, kind: str) -> Figure:
    def figure(link: Link) -> str:
        best = compared.best(kind, link)
        faster = best and compared.against(arm, best, link)
        return f"{faster} (`{best}`)" if faster else ""

    return figure


def _gaps(compared: Comparison, arm: str, link: Link) -> str:
    """Cloud's gaps do not depend on the link: those over all of them."""
    own, clouds = (
        _gap_p99_ms(compared.of(arm, link)),
        _gap_p99_ms(list(compared.cloud.values())),
    )
    return f"{own / clouds:.2f}" if own and clouds else ""


def _gap_p99_ms(answers: list[Answer]) -> float:
    gaps_ms = [gap for answer in answers for gap in answer.gaps_ms]
    return float(np.percentile(gaps_ms, 99)) if gaps_ms else 0.0


def _per_token(
    compared: Comparison, arm: str, count: Callable[[Answer], int], form: str
) -> Figure:
    def figure(link: Link) -> str:
        answers = compared.of(arm, link)
        tokens = sum(answer.tokens for answer in answers)
        return format(sum(map(count, answers)) / tokens, form) if tokens else ""

    return figure


def _same(compared: Comparison, arm: str, link: Link) -> str:
    same = [
        answer.text == compared.cloud[answer.asked].text
        for answer in compared.of(arm, link)
        if answer.asked in compared.cloud
    ]
    return f"{sum(same)} of {len(same)}" if same else ""
