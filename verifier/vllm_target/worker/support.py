"""From logits to the tokens that may follow, on any torch device, many rows at once.

    n  rows      V  vocabulary size      C  candidates: the likeliest tokens of each row

The support of a cut distribution is looked for among C candidates, likeliest first; it is found
if it ends before the candidates do. So the vocabulary is sorted only for wide distributions. It
is vLLM's support: temperature, min-p, top-k (ties of the k-th stay), then the shortest prefix
that holds top_p of what is left. Among equal logits the lower token comes first, so that a row
gives the same token in any batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from picospec.verifier.vllm_target.worker.noise import coarse, gumbel
from picospec.verifier.vllm_target.worker.rows import Columns, Kind

FINALISTS: Final = 8
"""Tokens of a row that are ranked in float64: float32 is right to 1e-5, and more tokens than
these never lie so close."""


@dataclass(frozen=True, slots=True)
class Support:
    """The tokens of n rows that have a probability."""

    tokens: Tensor
    """int64[n, C]."""

    logs: Tensor
    """float[n, C]: log p up to a constant of the row; -inf outside the support."""

    def best(self, prefixes: Tensor) -> Tensor:
        """Return argmax(log p + noise) by row: int64[n, 1]."""
        tokens, logs = self.tokens, self.logs
        if tokens.shape[1] > FINALISTS:
            scores = logs.to(torch.float32) + coarse(prefixes, tokens)
            finalists = scores.topk(FINALISTS, dim=1).indices
            tokens, logs = tokens.gather(1, finalists), logs.gather(1, finalists)
        best = (logs + gumbel(prefixes, tokens)).argmax(dim=1, keepdim=True)
        return tokens.gather(1, best)

    def p(self) -> Tensor:
        """Return the probabilities, as they are sent: float32[n, C]."""
        weights = torch.exp(self.logs.to(torch.float64))
        return (weights / weights.sum(dim=1, keepdim=True)).to(torch.float32)

    def p_of(self, tokens: Tensor) -> Tensor:
        """Return the probability of one token by row: float32[n, 1]. tokens: int64[n, 1]."""
        return self.p().masked_fill_(self.tokens != tokens, 0.0).sum(dim=1, keepdim=True)

    def spread(self, size: int) -> Tensor:
        """Return the probability of every token: float32[n, V]."""
        p = self.p()
        return p.new_zeros(len(p), size).scatter_(1, self.tokens, p)


def supports(
    kind: Kind, logits: Tensor, columns: Columns, count: int
) -> tuple[Support, Tensor]:
    """Return the supports, and which were found among `count` candidates: bool[n, 1]."""
    always = torch.ones(len(logits), 1, dtype=torch.bool, device=logits.device)
    if kind == "greedy":
        # the lowest of several: argmax alone promises no order
        best = logits.amax(dim=1, keepdim=True)
        tokens = (logits == best).to(torch.uint8).argmax(dim=1, keepdim=True)
        return Support(tokens, torch.zeros_like(tokens, dtype=torch.float64)), always
    scaled = logits / columns.temperature.to(logits.dtype)
    scaled -= scaled.amax(dim=1, keepdim=True)
    if kind == "cut":
        return _cut(scaled, columns, count)
    tokens = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape)
    return Support(tokens, scaled), always


def _cut(scaled: Tensor, columns: Columns, count: int) -> tuple[Support, Tensor]:
    weights = torch.exp(scaled)
    weights.masked_fill_(weights < columns.min_p, 0.0)
    total = weights.sum(dim=1, keepdim=True, dtype=torch.float64)
    values, tokens = _candidates(scaled, count)
    logs = values.to(torch.float64)
    kept = _kept(logs, columns, total)
    least = logs.masked_fill(~kept, 0.0).amin(dim=1, keepdim=True)
    found = (logs[:, -1:] < least) & (columns.top_k < count) | (count >= scaled.shape[1])
    return Support(tokens, logs.masked_fill(~kept, -torch.inf)), found


def _candidates(scaled: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest values and their tokens, by value, then by token."""
    if count >= scaled.shape[1]:
        return scaled.sort(dim=1, descending=True, stable=True)
    tokens = scaled.topk(count, dim=1).indices.sort(dim=1).values
    ordered = scaled.gather(1, tokens).sort(dim=1, descending=True, stable=True)
    return ordered.values, tokens.gather(1, ordered.indices)


def _kept(logs: Tensor, columns: Columns, total: Tensor) -> Tensor:
    """Tell which candidates stay. logs: float64[n, C], descending, from 0.

    total: what min-p leaves of the whole row's weight; it counts where no top-k is set.
    """
    top_k, top_p = columns.top_k, columns.top_p
    weights = torch.exp(logs)
    kept = weights >= columns.min_p
    kth = top_k.clamp(1, logs.shape[1]) - 1
    kept &= (top_k == 0) | (logs >= logs.gather(1, kth))
    left = weights * kept
    total = torch.where(top_k > 0, left.sum(dim=1, keepdim=True), total)
    before = left.cumsum(dim=1) - left
    kept &= (top_p >= 1.0) | (before < top_p * total)
    kept[:, 0] = True
    return kept
