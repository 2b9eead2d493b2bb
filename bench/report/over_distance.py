"""The figures by which an arm is judged, each over the links of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bench.data.results import gap_ms, same_texts
from bench.report.speedups import ROUNDS, Comparison, Link

Figure = Callable[[Link], str]
"""Figure(link): the value as it is printed; "" where it was not measured."""

COLOCATED: Final = "colocated-edge"


def figures(compared: Comparison, arm: str) -> dict[str, Figure]:
    """Return the lines of the table: means are geometric, over all families."""
    kinds = {name.partition(":")[0] for name in compared.arms}
    return {
        "times as fast as `cloud`": lambda link: str(
            compared.speedup(arm, link, compared.families) or ""
        ),
        **{f"times as fast as `{kind}`, best round": _against(compared, arm, kind)
           for kind in (*ROUNDS, COLOCATED) if kind in kinds},
        "gap p99, times `cloud`'s": lambda link: _gaps(compared, arm, link),
        "passes per token": _per_token(compared, arm, "target_passes", ".2f"),
        "bytes up per token": _per_token(compared, arm, "bytes_up", ".1f"),
        "bytes down per token": _per_token(compared, arm, "bytes_down", ".1f"),
        "texts as `cloud`'s": lambda link: _same(compared, arm, link),
    }  # fmt: skip


def _against(compared: Comparison, arm: str, kind: str) -> Figure:
    def figure(link: Link) -> str:
        best = compared.best(kind, link)
        faster = best and compared.against(arm, best, link)
        return f"{faster} (`{best}`)" if faster else ""

    return figure


def _gaps(compared: Comparison, arm: str, link: Link) -> str:
    """Compare with cloud's gaps over all links, on which they do not depend."""
    own, clouds = gap_ms(compared.of(arm, link), 99), gap_ms(compared.cloud.values(), 99)
    return f"{own / clouds:.2f}" if own and clouds else ""


def _per_token(compared: Comparison, arm: str, field: str, form: str) -> Figure:
    def figure(link: Link) -> str:
        answers = compared.of(arm, link)
        tokens = sum(answer.tokens for answer in answers)
        return format(sum(getattr(a, field) for a in answers) / tokens, form) if tokens else ""

    return figure


def _same(compared: Comparison, arm: str, link: Link) -> str:
    same = same_texts(compared.of(arm, link), compared.cloud)
    return f"{sum(same)} of {len(same)}" if same else ""
