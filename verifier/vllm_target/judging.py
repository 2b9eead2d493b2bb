"""Judges a step: every session's rows, lazily, in waves across the batch.

Wave j looks at the j-th row of each session whose first j drafts stand, all at once: rows past
a draft that fell are never looked at, and a device is asked once a wave, not once a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from torch import Tensor

from speculation.judging import Judgement, judge_separate
from verifier.vllm_target.orders import Order
from verifier.vllm_target.support import law, say

Rows = Callable[[list[tuple[int, int]]], Tensor]
"""Rows([(order, row), ...]): float32[n, V]. Row 0 predicts the first token of the step."""

_NOTHING: Final = Judgement((), accepted=0)


def judge(orders: Sequence[Order], rows: Rows) -> list[Judgement]:
    """Return what each order's pass says; for a silent order, nothing."""
    judged = [_NOTHING] * len(orders)
    coupled = []
    for i, order in enumerate(orders):
        if order.silent:
            continue
        if order.judge == "coupled":
            coupled.append(i)
        else:
            judged[i] = _separate(order, i, rows)
    for i, judgement in _coupled(orders, coupled, rows).items():
        judged[i] = judgement
    return judged


def _separate(order: Order, i: int, rows: Rows) -> Judgement:
    first = order.injected - len(order.draft)
    return judge_separate(
        lambda row: law(rows([(i, first + row)])[0], order.shape),
        order.draft,
        order.q,
        iter(order.u),
    )


def _coupled(orders: Sequence[Order], alive: list[int], rows: Rows) -> dict[int, Judgement]:
    said: dict[int, list[int]] = {i: [] for i in alive}
    done: dict[int, Judgement] = {}
    wave = 0
    while alive:
        logits = rows([(i, orders[i].injected - len(orders[i].draft) + wave) for i in alive])
        tokens = say(
            logits,
            [orders[i].shape for i in alive],
            [orders[i].seed for i in alive],
            [orders[i].at + wave for i in alive],
        )
        for i, token in zip(alive, tokens, strict=True):
            said[i].append(token)
            draft = orders[i].draft
            if wave == len(draft) or token != draft[wave]:
                done[i] = Judgement(tuple(said[i]), accepted=wave)
        alive = [i for i in alive if i not in done]
        wave += 1
    return done
