"""Judges a step: every session's rows, lazily, in waves across the batch.

Wave j looks at the j-th row of each session whose first j drafts stand, all at once: rows past
a draft that fell are never looked at, and a device is asked once a wave, not once a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from torch import Tensor

from speculation.sampling.judging import Judgement, judge_separate
from verifier.vllm_target.verify_request import VerifyRequest
from verifier.vllm_target.worker.support import distribution, say

Rows = Callable[[list[tuple[int, int]]], Tensor]
"""Rows([(order, row), ...]): float32[n, V]. Row 0 predicts the first token of the step."""

_NOTHING: Final = Judgement((), accepted=0)


def judge(requests: Sequence[VerifyRequest], rows: Rows) -> list[Judgement]:
    """Return what each order's pass says; for a silent order, nothing."""
    judged = [_NOTHING] * len(requests)
    coupled = []
    for i, order in enumerate(requests):
        if order.silent:
            continue
        if order.judge == "coupled":
            coupled.append(i)
        else:
            judged[i] = _separate(order, i, rows)
    for i, judgement in _coupled(requests, coupled, rows).items():
        judged[i] = judgement
    return judged


def _separate(order: VerifyRequest, i: int, rows: Rows) -> Judgement:
    first = order.injected - len(order.draft)
    return judge_separate(
        lambda row: distribution(rows([(i, first + row)])[0], order.shape),
        order.draft,
        order.q,
        iter(order.u),
    )


def _coupled(
    requests: Sequence[VerifyRequest], alive: list[int], rows: Rows
) -> dict[int, Judgement]:
    said: dict[int, list[int]] = {i: [] for i in alive}
    done: dict[int, Judgement] = {}
    wave = 0
    while alive:
        logits = rows(
            [(i, requests[i].injected - len(requests[i].draft) + wave) for i in alive]
        )
        tokens = say(
            logits,
            [requests[i].shape for i in alive],
            [requests[i].seed for i in alive],
            [requests[i].at + wave for i in alive],
        )
        for i, token in zip(alive, tokens, strict=True):
            said[i].append(token)
            draft = requests[i].draft
            if wave == len(draft) or token != draft[wave]:
                done[i] = Judgement(tuple(said[i]), accepted=wave)
        alive = [i for i in alive if i not in done]
        wave += 1
    return done
