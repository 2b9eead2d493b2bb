"""The edge's half of `separate` draws draft tokens and the recovered token.

Each draft token is sent at once. If its value could delay it, the draft tokens that arrive in
time for a pass would no longer have the distribution q.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from picospec.speculation.judges.judge import EdgeHalf
from picospec.speculation.protocol.errors import RemoteProtocolError
from picospec.speculation.protocol.messages import (
    Answer,
    Open,
    Recovered,
    Redraw,
    Reject,
    Sampling,
    TokenId,
)
from picospec.speculation.sampling.distributions import (
    GREEDY_BELOW,
    Q_SCALE,
    Logits,
    QuantisedDistribution,
    distribution,
    quantise,
    softmax_of,
)
from picospec.speculation.sampling.draft_token import DraftSampler, DraftToken
from picospec.speculation.sampling.noise import Floats, Tokens

CANDIDATES: Final = 32
"""q has this many tokens. On the Qwen pair 0.852 are accepted with 32, 0.847 with 8."""


class SeparateEdge(EdgeHalf):
    sends_at_once = True

    def __init__(self, request: Open, u: Iterator[float]) -> None:
        self.sampler = sampler(request.sampling, u)
        self._u = u
        self._draw = 0
        """The number of times this session has asked for more samples since the last draw."""

        self._in_tail = False
        """The tail is proposed, and the token will be one of the samples that are awaited."""

    def reopened(self) -> bool:
        """Continue a pending rejection: another verifier must not judge the draft token again,
        which would favour it. Its samples of the same p continue those that were tried."""
        self._draw = 0
        return self._in_tail

    def rejected(self, reject: Reject, drafted: DraftToken) -> Answer | None:
        """Draw the recovered token, or ask for more samples of the tail. Rejected samples are
        not tried again."""
        if drafted.q is None:
            raise RemoteProtocolError("Reject.position: the draft token there was not drawn")
        if reject.draw != self._draw:
            return None
        token = recover(reject, drafted.q, self._u, in_tail=self._in_tail)
        self._in_tail = token is None
        if token is None:
            self._draw += 1
            return Redraw(reject.epoch, reject.position, self._draw)
        self._draw = 0
        return Recovered(reject.epoch + 1, reject.position, token)


def sampler(sampling: Sampling, u: Iterator[float]) -> DraftSampler:
    """Return the function that draws a session's draft tokens from the quantised distribution
    of the draft model."""

    def pick(logits: Logits, position: int) -> DraftToken:
        q = quantise(distribution(logits, sampling, most=CANDIDATES))
        token = q.at(next(u))
        greedy = sampling.temperature < GREEDY_BELOW
        confidence = softmax_of(logits, token) if greedy else q.of(token) / Q_SCALE
        return DraftToken(token, confidence, q)

    return pick


def recover(
    reject: Reject, q: QuantisedDistribution, u: Iterator[float], *, in_tail: bool = False
) -> TokenId | None:
    """Draw the recovered token from max(0, p - q), normalised. p is given as a head and as
    samples of its tail.

    This is rejection sampling. It proposes a token of the head by max(0, p - q), or the next
    sample of the tail. It takes a token of the head, and one of the tail with probability
    max(0, 1 - q/p); else it starts again. So the result has exactly that distribution.

    Return None if the tail is proposed and no sample is left: call again with fresh samples and
    in_tail, so that the tail stays proposed. Raise RemoteProtocolError if p exceeds q nowhere,
    because no correct verifier sends such a Reject.
    """
    tokens, sums = residual(reject, q)
    total = float(sums[-1] if len(sums) else 0.0) + reject.tail_mass
    if total <= 0.0:
        raise RemoteProtocolError("Reject: p exceeds q nowhere, so no token can be recovered")
    samples = iter(reject.tail)
    while in_tail or (quantile := next(u) * total) >= total - reject.tail_mass:
        in_tail = False
        token, p = next(samples, (None, 0.0))
        if token is None or next(u) * p >= q.of(token) / Q_SCALE:
            return token
    return int(tokens[np.searchsorted(sums, quantile, side="right")])


def residual(reject: Reject, q: QuantisedDistribution) -> tuple[Tokens, Floats]:
    """Return the head's tokens and the running sum of max(0, p - q): int64[n], float64[n]."""
    tokens = np.array([token for token, _ in reject.head], np.int64)
    p = np.array([p for _, p in reject.head])
    excess = p - np.array([q.of(int(token)) for token in tokens]) / Q_SCALE
    return tokens, np.cumsum(np.maximum(excess, 0.0))
