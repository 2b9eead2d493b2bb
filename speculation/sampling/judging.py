"""Two exact ways to judge draft tokens, and how the recovered token is drawn.

    coupled    The target's token at a position is a function of the logits, the seed and the
               position. A draft token is accepted if and only if it is that token
               (arXiv:2408.07978).
    separate   The edge drew x from q; it is accepted with probability min(1, p(x)/q(x)). At the
               first rejection p is sent to the edge, which draws the recovered token from
               max(0, p - q), normalised. So the output has the distribution p (Leviathan et al.
               2023, arXiv:2211.17192, theorem 1). Only the head of p is sent whole; its tail is
               sent as samples, because to drop it would bias the output.

No row is computed after that of the first rejected draft token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from picospec.speculation.protocol.errors import RemoteProtocolError, TailExhausted
from picospec.speculation.protocol.messages import Reject, TokenId
from picospec.speculation.sampling.distributions import (
    Q_SCALE,
    Distribution,
    QuantisedDistribution,
    head_of,
)
from picospec.speculation.sampling.noise import Floats, Tokens

Row = Callable[[int], Distribution]
"""Row(i): the target's distribution p at the i-th position of the pass, i = 0..K."""

TAIL_SAMPLES: Final = 8
"""Samples of the tail in one Reject: an edge that needs more asks for them."""


@dataclass(frozen=True)
class Rejection:
    """A rejected draft token in `separate`, with the whole p that judged it."""

    token: TokenId
    p: Distribution  # p rounded to float32, as it is sent

    def allows(self, recovered: TokenId) -> bool:
        """Return whether a token can be the recovered one: p(token) > 0, and it is not the
        rejected token, where max(0, p - q) is 0."""
        return recovered != self.token and self.p.of(recovered) > 0.0

    def message(self, epoch: int, position: int, u: Sequence[float]) -> Reject:
        """Return p as it is sent. u: one uniform in [0, 1) for each sample of the tail."""
        head, tail = self._cut
        drawn = tail.draw(u) if tail.p.size else []
        likely = zip(self.p.tokens[head].tolist(), self.p.p[head].tolist(), strict=True)
        samples = tuple((token, tail.of(token)) for token in drawn)
        tail_mass = float(np.float32(tail.p.sum()))
        return Reject(epoch, position, tuple(likely), tail_mass, samples)

    @cached_property
    def _cut(self) -> tuple[Tokens, Distribution]:
        """Where the head is in p, and the tail. It is computed once for all Redraws."""
        head = head_of(self.p)
        tail = np.setdiff1d(np.arange(len(self.p.tokens)), head)
        return head, Distribution(self.p.tokens[tail], self.p.p[tail])


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a pass generated: the accepted draft tokens, then a token of the target's own or a
    rejection."""

    tokens: tuple[TokenId, ...]
    accepted: int
    rejection: Rejection | None = None


def judge_coupled(row: Row, draft: Sequence[TokenId], seed: int, at: int) -> Judgement:
    """Accept draft tokens while they equal the target's tokens; end with the recovered token
    or, after K accepted draft tokens, with the bonus token. at: `noise.place` of draft[0]."""
    own = [row(0).coupled(seed, at)]
    while len(own) <= len(draft) and own[-1] == draft[len(own) - 1]:
        own.append(row(len(own)).coupled(seed, at + len(own)))
    return Judgement(tuple(own), accepted=len(own) - 1)


def judge_separate(
    row: Row, draft: Sequence[TokenId], q: Sequence[int], u: Iterator[float]
) -> Judgement:
    """Accept draft[i] with probability min(1, p/q), up to a rejection or, after K accepted
    draft tokens, the bonus token. q: the tokens' weights in 1/Q_SCALE, positive. u: K + 1
    uniforms in [0, 1)."""
    for i, (token, weight) in enumerate(zip(draft, q, strict=True)):
        p = as_sent(row(i))
        if next(u) * weight >= p.of(token) * Q_SCALE:  # u < p/q, without the division
            return Judgement(tuple(draft[:i]), accepted=i, rejection=Rejection(token, p))
    bonus = as_sent(row(len(draft))).at(next(u))
    return Judgement((*draft, bonus), accepted=len(draft))


def as_sent(p: Distribution) -> Distribution:
    """Round p to float32, as it is sent: acceptance and recovery must use one distribution."""
    rounded = p.p.astype(np.float32).astype(np.float64)
    return Distribution(p.tokens[rounded > 0.0], rounded[rounded > 0.0])


def recover(
    reject: Reject, q: QuantisedDistribution, u: Iterator[float], *, tail_owed: bool = False
) -> TokenId:
    """Draw the recovered token from max(0, p - q), normalised. p is known as a head, and as
    samples of its tail.

    This is rejection sampling: propose a token of the head by max(0, p - q), or the next sample
    of the tail. A token of the head is taken; one of the tail is taken with probability
    max(0, 1 - q/p), else all is drawn again. So the result has exactly that distribution.

    Raise TailExhausted when the tail is proposed and no sample is left; call again with
    the answer to a Redraw and tail_owed, so that the tail stays proposed. Raise
    RemoteProtocolError when p exceeds q nowhere, because such a Reject cannot be honest.
    """
    tokens, sums = residual(reject, q)
    total = float(sums[-1] if len(sums) else 0.0) + reject.tail_mass
    if total <= 0.0:
        raise RemoteProtocolError("Reject: p exceeds q nowhere, so no token can be recovered")
    samples = iter(reject.tail)
    while tail_owed or (quantile := next(u) * total) >= total - reject.tail_mass:
        tail_owed = False
        token, p = next(samples, (None, 0.0))
        if token is None:
            raise TailExhausted(f"position {reject.position}: {len(reject.tail)} were rejected")
        if next(u) * p >= q.of(token) / Q_SCALE:
            return token
    return int(tokens[np.searchsorted(sums, quantile, side="right")])


def residual(reject: Reject, q: QuantisedDistribution) -> tuple[Tokens, Floats]:
    """Return the head's tokens and the running sum of max(0, p - q): int64[n], float64[n]."""
    tokens = np.array([token for token, _ in reject.head], np.int64)
    p = np.array([p for _, p in reject.head])
    excess = p - np.array([q.of(int(token)) for token in tokens]) / Q_SCALE
    return tokens, np.cumsum(np.maximum(excess, 0.0))
