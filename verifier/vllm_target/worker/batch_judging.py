"""Judges a step on an accelerator: all rows at once, and the host waits for it at most twice.

    first look     every row among CANDIDATES candidates. The host gets one number a row: the
                   target's token, or in `separate` the probability of the draft token; and NaN
                   where the support is wider than the candidates.
    second look    only where something is missing: rows with NaN, over the whole vocabulary,
                   and in `separate` the distribution that a session's pass ends with.

Rows are looked at in chunks, so that the memory they need is bounded; chunks do not wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import isnan, nan
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speculation.sampling.distributions import Distribution
from speculation.sampling.judging import Judgement, Rejection, as_sent, judge_separate
from verifier.vllm_target.verify_request import VerifyRequest
from verifier.vllm_target.worker.chunks import Chunk, chunks
from verifier.vllm_target.worker.judging import distribution_of
from verifier.vllm_target.worker.rows import Row, StepLogits, rows_of, upload

CANDIDATES: Final = 512
"""Candidates of the first look, so that the second is rare. Not tuned: no GPU was at hand when
it was chosen. `python -m bench.calibrate.kernels --device cuda` times a step."""


def judge_at_once(requests: Sequence[VerifyRequest], step: StepLogits) -> list[Judgement]:
    """Return the outcome of each request's pass; of a silent one, nothing."""
    passes = {
        number: _Pass(request) for number, request in enumerate(requests) if not request.silent
    }
    first = list(chunks(rows_of(requests), CANDIDATES, step))
    numbers = _fetched([_first_look(chunk, step) for chunk in first])
    for row, number in zip(_rows(first), numbers.tolist(), strict=True):
        passes[row.number].values[row.index] = number
    second = [
        *chunks(_missing(passes, found=True), CANDIDATES, step),
        *chunks(_missing(passes, found=False), step.vocabulary_size, step),
    ]
    rest = _fetched([_second_look(chunk, step) for chunk in second])
    for row in _rows(second):
        width = 1 if row.request.judge == "coupled" else step.vocabulary_size
        passes[row.number].complete(row.index, rest[:width])
        rest = rest[width:]
    nothing = Judgement((), accepted=0)
    return [passes[n].judgement() if n in passes else nothing for n in range(len(requests))]


class _Pass:
    """What is known of one session's rows."""

    def __init__(self, request: VerifyRequest) -> None:
        self.request = request
        self.values = [nan] * (len(request.draft) + 1)
        """Of each row the number that the first look gives."""

        self._distributions: dict[int, Distribution] = {}

    def missing(self, *, found: bool) -> list[int]:
        """Return the rows that need a second look: those with NaN, or of the `found` ones that
        whose distribution is wanted."""
        last = self.judgement().accepted
        wide = [index for index in range(last + 1) if isnan(self.values[index])]
        if not found:
            return wide
        return [last] if self.request.judge == "separate" and last not in wide else []

    def complete(self, index: int, found: NDArray[np.float32]) -> None:
        """Take in what a second look found: a token, or a row's probabilities."""
        if self.request.judge == "coupled":
            self.values[index] = float(found[0])
        else:
            self._distributions[index] = distribution_of(found)

    def judgement(self) -> Judgement:
        """Judge by what is known; rows with NaN are taken to accept their draft tokens."""
        request = self.request
        if request.judge == "coupled":
            return self._coupled()
        judged = judge_separate(self._row, request.draft, request.q, iter(request.u))
        p = self._distributions.get(judged.accepted)
        if judged.rejection is None or p is None:
            return judged
        return replace(judged, rejection=Rejection(judged.rejection.token, as_sent(p)))

    def _coupled(self) -> Judgement:
        draft = self.request.draft
        tokens = [
            drafted if isnan(value) else int(value)
            for value, drafted in zip(self.values, (*draft, 0), strict=True)
        ]
        agreed = (a == b for a, b in zip(tokens, draft, strict=False))
        accepted = next((i for i, same in enumerate(agreed) if not same), len(draft))
        return Judgement(tuple(tokens[: accepted + 1]), accepted)

    def _row(self, index: int) -> Distribution:
        """Return a row's distribution, or as much of it as judging a draft token needs."""
        draft, value = self.request.draft, self.values[index]
        if index == len(draft) or isnan(value):
            unknown = Distribution(np.array([(*draft, 0)[index]]), np.ones(1))
            return self._distributions.get(index, unknown)
        return Distribution(np.array([draft[index]]), np.array([value]))


def _missing(passes: Mapping[int, _Pass], *, found: bool) -> list[Row]:
    return [
        Row(number, index, each.request)
        for number, each in passes.items()
        for index in each.missing(found=found)
    ]


def _rows(chunks: Sequence[Chunk]) -> Iterator[Row]:
    return (row for chunk in chunks for row in chunk.rows)


def _first_look(chunk: Chunk, step: StepLogits) -> Tensor:
    """Return one number a row: float32[n], which holds every token id below 2**24 exactly."""
    support, columns, found = chunk.supports(step)
    if chunk.separate:
        drafted = [[(*row.request.draft, -1)[row.index]] for row in chunk.rows]
        values = support.p_of(upload(np.array(drafted, np.int64), found.device))
    else:
        values = support.best(columns.prefixes).to(torch.float32)
    return values.masked_fill(~found, nan)


def _second_look(chunk: Chunk, step: StepLogits) -> Tensor:
    """Return a token a row: float32[n]; or all probabilities, row after row: float32[n V]."""
    support, columns, _ = chunk.supports(step)
    if chunk.separate:
        return support.spread(step.vocabulary_size).flatten()
    return support.best(columns.prefixes).to(torch.float32)


def _fetched(parts: Sequence[Tensor]) -> NDArray[np.float32]:
    """Wait for the device, if it was asked for anything, and bring over what it found."""
    return torch.cat(list(parts)).cpu().numpy() if parts else np.empty(0, np.float32)
