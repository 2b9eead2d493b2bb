"""From logits to distributions on any torch device, many rows at once, without sorting the vocabulary.

    n  rows      V  vocabulary size      C  candidates: the likeliest tokens of each row

A distribution's support is found among C candidates, likeliest first, and C grows until the support ends
before the candidates do: each row's by itself, so that a wide distribution costs no other. It is vLLM's
support: temperature, min-p, top-k (ties of the k-th stay), then the shortest prefix that holds
top_p of what is left. Among equal logits the lower token comes first, so that a row means the
same in any batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from speculation.sampling.distributions import GREEDY_BELOW, Distribution
from verifier.vllm_target.verify_request import Shape
from verifier.vllm_target.worker.noise import coarse, gumbel

FIRST_CANDIDATES: Final = 64
GROWTH: Final = 8
FINALISTS: Final = 8


@dataclass(frozen=True, slots=True)
class Support:
    """Tokens that may be said, by row."""

    tokens: Tensor
    """int64[n, C]."""

    logs: Tensor
    """float[n, C]: log p up to a constant of the row; -inf outside the support."""

    def rows(self, some: list[int]) -> Support:
        return Support(self.tokens[some], self.logs[some])


_Part = tuple[Sequence[int], Support]
"""Rows, and their supports."""


def say(
    logits: Tensor, shapes: Sequence[Shape], seeds: list[int], places: list[int]
) -> list[int]:
    """Return each row's token under the noise. logits: float32[n, V], after penalties."""
    said = [0] * len(shapes)
    for rows, found in _supports(logits, shapes):
        best = _best(found, [seeds[i] for i in rows], [places[i] for i in rows])
        for i, token in zip(rows, best.tolist(), strict=True):
            said[i] = token
    return said


def _best(found: Support, seeds: list[int], places: list[int]) -> Tensor:
    """Return argmax(log p + noise) by row: int64[n].

    All tokens are scored in float32, the few best again in float64: float32 is right to 1e-5,
    and more than FINALISTS tokens never lie so close.
    """
    tokens, logs = found.tokens, found.logs
    if tokens.shape[1] > FINALISTS:
        scores = logs.to(torch.float32) + coarse(seeds, places, tokens)
        finalists = scores.topk(FINALISTS, dim=1).indices
        tokens, logs = tokens.gather(1, finalists), logs.gather(1, finalists)
    best = (logs + gumbel(seeds, places, tokens)).argmax(dim=1, keepdim=True)
    return tokens.gather(1, best)[:, 0]


def distribution(logits: Tensor, shape: Shape) -> Distribution:
    """Return one row's distribution. logits: float32[V]."""
    (_, found), *_ = _supports(logits[None], [shape])
    kept = ~torch.isneginf(found.logs[0])
    weights = torch.exp(found.logs[0][kept].to(torch.float64)).cpu().numpy()
    some = weights > 0.0
    tokens = found.tokens[0][kept].cpu().numpy().astype(np.int64)
    return Distribution(tokens[some], weights[some] / weights[some].sum())


def _supports(logits: Tensor, shapes: Sequence[Shape]) -> list[tuple[list[int], Support]]:
    """Return supports by kind of row: greedy, cut, whole."""
    greedy = [i for i, shape in enumerate(shapes) if shape.temperature < GREEDY_BELOW]
    drawn = [i for i, shape in enumerate(shapes) if shape.temperature >= GREEDY_BELOW]
    kinds = {
        _greedy: greedy,
        _cut: [i for i in drawn if shapes[i].cuts],
        _whole: [i for i in drawn if not shapes[i].cuts],
    }
    return [
        ([rows[i] for i in part], support)
        for find, rows in kinds.items()
        if rows
        for part, support in find(_biased(logits, shapes, rows), [shapes[i] for i in rows])
    ]


def _biased(logits: Tensor, shapes: Sequence[Shape], rows: list[int]) -> Tensor:
    chosen = logits[rows]
    for row, i in enumerate(rows):
        if shapes[i].bias:
            tokens, values = zip(*shapes[i].bias, strict=True)
            chosen[row, list(tokens)] += chosen.new_tensor(values)
    return chosen


def _greedy(logits: Tensor, shapes: Sequence[Shape]) -> list[_Part]:
    """The most likely token; the lowest of several: argmax alone promises no order."""
    best = logits.amax(dim=1, keepdim=True)
    tokens = (logits == best).to(torch.uint8).argmax(dim=1, keepdim=True)
    certain = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
    return [(range(len(shapes)), Support(tokens, certain))]


def _whole(logits: Tensor, shapes: Sequence[Shape]) -> list[_Part]:
    tokens = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape)
    return [(range(len(shapes)), Support(tokens, _scaled(logits, shapes)))]


def _scaled(logits: Tensor, shapes: Sequence[Shape]) -> Tensor:
    """Divide by the temperature; then the largest is 0."""
    temperatures = logits.new_tensor([shape.temperature for shape in shapes])
    scaled = logits / temperatures[:, None]
    return scaled - scaled.amax(dim=1, keepdim=True)


def _cut(logits: Tensor, shapes: Sequence[Shape]) -> list[_Part]:
    scaled = _scaled(logits, shapes)
    limits = _Limits.of(scaled, shapes)
    left, count = list(range(len(shapes))), FIRST_CANDIDATES
    parts: list[_Part] = []
    while left:
        support, ended = _among(scaled, limits, count)
        if some := [i for i, end in enumerate(ended) if end]:
            parts.append(([left[i] for i in some], support.rows(some)))
        rest = [i for i, end in enumerate(ended) if not end]
        left, scaled, limits = [left[i] for i in rest], scaled[rest], limits.rows(rest)
        count *= GROWTH
    return parts


def _among(scaled: Tensor, limits: _Limits, count: int) -> tuple[Support, list[bool]]:
    """Return the rows' supports among `count` candidates, and which end before those do."""
    size = scaled.shape[1]
    values, tokens = _candidates(scaled, min(count, size))
    logs = values.to(torch.float64)
    kept = limits.keep(logs)
    least = logs.masked_fill(~kept, 0.0).amin(dim=1)
    ended = (logs[:, -1] < least) & (limits.top_k[:, 0] < count) | (count >= size)
    return Support(tokens, logs.masked_fill(~kept, -torch.inf)), ended.tolist()


def _candidates(scaled: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest values and their tokens, by value, then by token."""
    tokens = scaled.topk(count, dim=1).indices.sort(dim=1).values
    values, order = scaled.gather(1, tokens).sort(dim=1, descending=True, stable=True)
    return values, tokens.gather(1, order)


@dataclass(frozen=True, slots=True)
class _Limits:
    """Columns [n, 1] of the settings, as each row compares with them."""

    min_p: Tensor
    top_k: Tensor
    top_p: Tensor
    total: Tensor
    """float64: what min-p leaves of the whole row, where no top-k is set."""

    @staticmethod
    def of(scaled: Tensor, shapes: Sequence[Shape]) -> _Limits:
        def column(values: list[float] | list[int], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=scaled.device)[:, None]

        min_p = column([shape.min_p for shape in shapes], torch.float64)
        weights = torch.exp(scaled)
        weights.masked_fill_(weights < min_p, 0.0)
        return _Limits(
            min_p,
            column([shape.top_k for shape in shapes], torch.int64),
            column([shape.top_p for shape in shapes], torch.float64),
            weights.sum(dim=1, keepdim=True, dtype=torch.float64),
        )

    def rows(self, some: list[int]) -> _Limits:
        columns = (self.min_p, self.top_k, self.top_p, self.total)
        return _Limits(*(column[some] for column in columns))

    def keep(self, logs: Tensor) -> Tensor:
        """Tell which candidates stay. logs: float64[n, C], descending, from 0."""
        weights = torch.exp(logs)
        kept = weights >= self.min_p
        last = (self.top_k.clamp(1, logs.shape[1]) - 1).clamp(min=0)
        kept &= (self.top_k == 0) | (logs >= logs.gather(1, last))
        left = weights * kept
        total = torch.where(self.top_k > 0, left.sum(dim=1, keepdim=True), self.total)
        before = left.cumsum(dim=1) - left
        kept &= (self.top_p >= 1.0) | (before < self.top_p * total)
        kept[:, 0] = True
        return kept
