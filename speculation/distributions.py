"""Distributions over tokens: from logits and settings to the distribution that is judged.

    V    vocabulary size
    p    the target's distribution
    q    the draft model's distribution

The settings are applied in vLLM's order, each to the result of the one before: temperature,
min-p, top-k, top-p. Supports are found exactly without sorting V: candidates come from block
maxima, and their number grows until they hold the support.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from speculation.messages import Sampling, TokenLogprob
from speculation.model_facts import TokenId
from speculation.noise import Floats, Tokens, gumbel

Logits = NDArray[np.float32]
_Weighted = tuple[Tokens, Floats]

GREEDY_BELOW: Final = 1e-5
"""A lower temperature means the argmax: dividing by it would overflow (vLLM's limit)."""

Q_SCALE: Final = 1 << 16
"""The probabilities of q are multiples of 1/Q_SCALE, so that both ends know q exactly."""

_BLOCK: Final = 64  # tokens of one block in `top`


@dataclass(frozen=True, slots=True)
class Distribution:
    """Tokens that are not listed have probability 0."""

    tokens: Tokens  # int64[n], each once
    p: Floats  # float64[n], positive, sums to 1

    def of(self, token: int) -> float:
        """Return the probability of one token."""
        places = np.flatnonzero(self.tokens == token)
        return float(self.p[places[0]]) if places.size else 0.0

    def at(self, u: float) -> int:
        """Return the token at quantile u, 0 <= u < 1."""
        return self.draw([u])[0]

    def draw(self, u: Sequence[float]) -> list[int]:
        """Return the token at each of the quantiles."""
        sums = np.cumsum(self.p)
        places = np.searchsorted(sums, np.asarray(u) * sums[-1], side="right")
        tokens: list[int] = self.tokens[places].tolist()
        return tokens

    def picked(self, seed: int, at: int) -> int:
        """Return the token that the shared noise picks: argmax(log p + gumbel)."""
        if self.tokens.size == 1:
            return int(self.tokens[0])
        return int(self.tokens[np.argmax(np.log(self.p) + gumbel(seed, at, self.tokens))])


def distribution(
    logits: Logits, sampling: Sampling, *, most: int | None = None
) -> Distribution:
    """Return the distribution that `sampling` makes of logits (float32[V]). most: keep only
    this many of the likeliest tokens, renormalised; a draft needs no more."""
    if sampling.temperature < GREEDY_BELOW:
        return Distribution(np.array([np.argmax(logits)], np.int64), np.ones(1))
    scaled = logits / np.float32(sampling.temperature)
    scaled -= scaled.max()
    limits = [n for n in (sampling.top_k, most or 0) if n > 0]
    if limits:
        tokens = top(scaled, min(limits))
        weights = np.exp(scaled[tokens], dtype=np.float64)
        kept = weights >= sampling.min_p * weights[0]
        tokens, weights = tokens[kept], weights[kept]
        return _normalised(*_top_p(tokens, weights, sampling.top_p, float(weights.sum())))
    shares = np.exp(scaled)
    if sampling.min_p > 0.0:
        shares[shares < sampling.min_p] = 0.0
    return _normalised(*_nucleus(scaled, shares, sampling.top_p))


def softmax_of(logits: Logits, token: int) -> float:
    """Return the probability of a token at temperature 1. logits: float32[V]."""
    weights = np.exp(logits - logits.max())
    return float(weights[token] / weights.sum())


def logprob_of(logits: Logits, token: TokenId, most: int) -> TokenLogprob:
    """Return log softmax(logits) of a token and of the `most` likeliest tokens, without any
    setting. logits: float32[V]."""
    peak = logits.max()
    norm = float(peak) + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))
    likeliest = top(logits, most).tolist() if most else []
    return TokenLogprob(
        float(logits[token]) - norm, tuple((t, float(logits[t]) - norm) for t in likeliest)
    )


def top(values: Logits, count: int) -> Tokens:
    """Return the indices of the `count` largest values, largest first. values: float32[V].

    Of equal values the lower index comes first, on any machine, because a distribution may not
    depend on a library's sort. A block can hold one of the n largest only if its maximum is not
    below the n-th largest maximum, so only those blocks are searched. A block is 64 values a
    stride apart: whole vectors then find the maxima of all blocks, 15 times as fast.
    """
    size = len(values)
    if count * _BLOCK * 2 >= size:
        return _largest(values, np.arange(size), count)
    stride = size // _BLOCK
    whole = stride * _BLOCK
    maxima = values[:whole].reshape(_BLOCK, stride).max(axis=0)
    blocks = np.flatnonzero(maxima >= np.partition(maxima, -count)[-count])
    inside = (np.arange(_BLOCK)[:, None] * stride + blocks).ravel()
    return _largest(values, np.concatenate([inside, np.arange(whole, size)]), count)


def _largest(values: Logits, among: Tokens, count: int) -> Tokens:
    """Return the indices of the `count` largest values at `among`, which ascends."""
    largest = values[among]
    if count < len(among):
        least = np.partition(largest, -count)[-count]
        above, equal = among[largest > least], among[largest == least]
        among = np.concatenate([above, equal[: count - len(above)]])
    return among[np.lexsort((among, -values[among]))]


def _top_p(tokens: Tokens, weights: Floats, top_p: float, total: float) -> _Weighted:
    """Cut at the smallest prefix that holds top_p of `total`. tokens: likeliest first."""
    if top_p >= 1.0:
        return tokens, weights
    count = int(np.searchsorted(np.cumsum(weights), top_p * total)) + 1
    return tokens[:count], weights[:count]


def _nucleus(scaled: Logits, weights: Logits, top_p: float) -> _Weighted:
    """Return the top-p support over all of V; sort only as many tokens as it needs."""
    if top_p >= 1.0:
        return np.arange(len(weights)), weights.astype(np.float64)
    total = float(weights.sum(dtype=np.float64))
    count = _BLOCK
    while True:
        tokens = top(scaled, min(count, len(scaled)))
        sorted_weights = weights[tokens].astype(np.float64)
        if count >= len(scaled) or sorted_weights.sum() >= top_p * total:
            return _top_p(tokens, sorted_weights, top_p, total)
        count *= 8


def _normalised(tokens: Tokens, weights: Floats) -> Distribution:
    p = weights / weights.sum()
    return Distribution(tokens[p > 0.0], p[p > 0.0])


@dataclass(frozen=True, slots=True)
class QuantisedDistribution:
    """A distribution in whole multiples of 1/Q_SCALE. Draft tokens are drawn from this one, and
    only weights are sent, so both ends know q exactly."""

    tokens: Tokens
    weights: Tokens  # int64[n], positive, sums to Q_SCALE

    def of(self, token: int) -> int:
        """Return the weight of one token, 0 if it has none."""
        places = np.flatnonzero(self.tokens == token)
        return int(self.weights[places[0]]) if places.size else 0

    def at(self, u: float) -> int:
        """Return the token at quantile u, 0 <= u < 1."""
        return int(self.tokens[np.searchsorted(np.cumsum(self.weights), u * Q_SCALE, "right")])


def quantise(exact: Distribution) -> QuantisedDistribution:
    """Round a distribution over at most Q_SCALE tokens to weights, by largest remainders."""
    shares = exact.p * Q_SCALE
    weights = np.floor(shares).astype(np.int64)
    short = Q_SCALE - int(weights.sum())
    weights[np.argsort(weights - shares, kind="stable")[:short]] += 1
    kept = weights > 0
    return QuantisedDistribution(exact.tokens[kept], weights[kept])
