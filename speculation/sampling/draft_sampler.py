"""From the draft model's logits to a DraftToken: how each judge wants its drafts drawn.

coupled    The token that the shared noise picks from the draft's distribution, sharpened: mostly the
           target's own. Any function of distribution and noise is as exact; this one is right oftenest.
separate   A draw from the draft's distribution in whole weights, at a uniform of the edge's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from speculation.protocol.messages import Sampling, TokenId
from speculation.sampling.distributions import (
    GREEDY_BELOW,
    Q_SCALE,
    Logits,
    distribution,
    quantise,
    top,
)
from speculation.sampling.draft_token import DraftToken
from speculation.sampling.noise import Floats, gumbel, place

DraftSampler = Callable[[Logits, int], DraftToken]
"""DraftSampler(logits, position): the guess for an output position. logits: float32[V], the draft's.

Called in the drafter's thread; keeps nothing of the logits.
"""

COUPLED_TOKENS: Final = 64
"""Candidates of a coupled draft. Measured on the Qwen pair: 32 lose nothing against all."""

SHARPNESS: Final = 1.2
"""A small model is less sure than a large one: the draft's distribution to this power agrees with the
target's draw more often than the distribution itself. Measured on the Qwen pair at temperature 1, 2271
positions: .853 against .845; chat .703 against .688. Optimal rejection sampling: .860."""

SEPARATE_TOKENS: Final = 32
"""Support of q in `separate`. Measured: 32 accept .852 where 8 accept .847."""


def coupled(sampling: Sampling, seed: int, prompt_tokens: int) -> DraftSampler:
    """Return the DraftSampler of a session judged `coupled`."""

    def pick(logits: Logits, position: int) -> DraftToken:
        if sampling.temperature < GREEDY_BELOW:
            token = int(top(logits, 1)[0])
            return DraftToken(token, _softmax(logits, [token])[0])
        drafted = distribution(logits, sampling, most=COUPLED_TOKENS)
        noise = gumbel(seed, place(prompt_tokens, position), drafted.tokens)
        scores = SHARPNESS * np.log(drafted.p) + noise
        token = int(drafted.tokens[np.argmax(scores)])
        trust = _trust(scores * sampling.temperature, _softmax(logits, [token])[0])
        return DraftToken(token, trust)

    return pick


def separate(sampling: Sampling, uniform: Callable[[], float]) -> DraftSampler:
    """Return the DraftSampler of a session judged `separate`. uniform: draws from [0, 1), fresh."""

    def pick(logits: Logits, position: int) -> DraftToken:
        q = quantise(distribution(logits, sampling, most=SEPARATE_TOKENS))
        token = q.at(uniform())
        if sampling.temperature < GREEDY_BELOW:
            return DraftToken(token, _softmax(logits, [token])[0], q)
        return DraftToken(token, q.of(token) / Q_SCALE, q)

    return pick


def _softmax(logits: Logits, tokens: Sequence[TokenId]) -> list[float]:
    """Return the probabilities of these tokens at temperature 1."""
    weights = np.exp(logits - logits.max())
    probabilities: list[float] = (weights[tokens] / weights.sum()).tolist()
    return probabilities


def _trust(scores: Floats, q: float) -> float:
    """Return the chance that the target picks the same: the lead over the next best decides.

    scores: float64[n], in logits, noise included. q: the token's probability at temperature 1.
    A logistic fit on the Qwen pair at temperature 1: log loss .242, where q itself has .331.
    """
    best = np.sort(scores)[-2:]
    lead = best[1] - best[0] if len(best) > 1 else np.log(q / max(1.0 - q, 1e-9))
    return float(1.0 / (1.0 + np.exp(0.14 - 0.8 * lead - 0.35 * np.log(max(q, 1e-30)))))
