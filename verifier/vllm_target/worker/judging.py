"""Judges a step on a CPU: row by row of each session, lazily.

Rows after a rejected draft token are never looked at. The rows of sessions judged `coupled` go
in waves: wave j holds the j-th row of each session whose first j draft tokens were accepted.
On an accelerator, where each wave would wait for the device, `batch_judging` judges instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from speculation.protocol.messages import TokenId
from speculation.sampling.distributions import Distribution
from speculation.sampling.judging import Judgement, judge_separate
from verifier.vllm_target.verify_request import VerifyRequest
from verifier.vllm_target.worker.chunks import Chunk, chunks
from verifier.vllm_target.worker.rows import Columns, Row, StepLogits
from verifier.vllm_target.worker.support import Support

FIRST_CANDIDATES: Final = 64
"""Candidates that a cut row is first looked for among; most supports are smaller."""

GROWTH: Final = 8
"""How many times as many candidates a row gets whose support was not found."""


def judge_lazily(requests: Sequence[VerifyRequest], step: StepLogits) -> list[Judgement]:
    """Return the outcome of each request's pass; of a silent one, nothing."""
    judged = [Judgement((), accepted=0)] * len(requests)
    coupled = []
    for number, request in enumerate(requests):
        if request.silent:
            continue
        if request.judge == "coupled":
            coupled.append(Row(number, 0, request))
        else:
            judged[number] = _separate(number, request, step)
    for number, judgement in _coupled(coupled, step):
        judged[number] = judgement
    return judged


def _separate(number: int, request: VerifyRequest, step: StepLogits) -> Judgement:
    def row(index: int) -> Distribution:
        return distribution(Row(number, index, request), step)

    return judge_separate(row, request.draft, request.q, iter(request.u))


def _coupled(wave: list[Row], step: StepLogits) -> Iterator[tuple[int, Judgement]]:
    generated: dict[int, list[TokenId]] = {row.number: [] for row in wave}
    while wave:
        following = []
        for row, token in zip(wave, tokens_of(wave, step), strict=True):
            tokens, draft = generated[row.number], row.request.draft
            tokens.append(token)
            if row.index < len(draft) and draft[row.index] == token:
                following.append(Row(row.number, row.index + 1, row.request))
            else:
                yield row.number, Judgement(tuple(tokens), accepted=row.index)
        wave = following


def tokens_of(rows: Sequence[Row], step: StepLogits) -> list[TokenId]:
    """Return the target's token of each row, under the noise."""
    tokens: dict[tuple[int, int], TokenId] = {}
    for chunk, support, columns in _looks(rows, step):
        best = support.best(columns.prefixes).tolist()
        keys = [(row.number, row.index) for row in chunk.rows]
        tokens.update(zip(keys, best, strict=True))
    return [tokens[row.number, row.index] for row in rows]


def distribution(row: Row, step: StepLogits) -> Distribution:
    """Return one row's distribution."""
    *_, (_, support, _) = _looks([row], step)
    return distribution_of(support.spread(step.vocabulary_size)[0].numpy())


def distribution_of(p: NDArray[np.float32]) -> Distribution:
    """Return the distribution with these probabilities. p: float32[V]."""
    tokens = np.flatnonzero(p)
    return Distribution(tokens, p[tokens].astype(np.float64))


def _looks(rows: Sequence[Row], step: StepLogits) -> Iterator[tuple[Chunk, Support, Columns]]:
    """Look at rows among more and more candidates; the last look at a row has its support."""
    count = FIRST_CANDIDATES
    while rows:
        wide: list[Row] = []
        for chunk in chunks(rows, count, step):
            support, columns, found = chunk.supports(step)
            yield chunk, support, columns
            wide += [
                row for row, end in zip(chunk.rows, found.tolist(), strict=True) if not end
            ]
        rows, count = wide, count * GROWTH
