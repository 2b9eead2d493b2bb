"""What becomes of a draft: two exact ways to judge, and how a rejected token is replaced.

coupled    The target's token at a position is a function of the logits, the seed and the
           position. A draft stands if and only if it is that token. (arXiv:2408.07978)
separate   The edge drew x from q; it stands with probability min(1, p(x)/q(x)). At the first
           rejection p goes to the edge, sparse, and the edge draws the replacement from
           max(0, p - q), normalised: p is what comes out (Leviathan et al. 2023,
           arXiv:2211.17192, theorem 1). Where p is cut to a head, its tail is sent as samples,
           not dropped: a truncated p is a biased one.

Rows are looked at lazily, up to the first draft that falls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from speculation.protocol.errors import RemoteProtocolError, TailExhausted
from speculation.protocol.messages import Reject, TokenId
from speculation.sampling.distributions import (
    Q_SCALE,
    Distribution,
    QuantisedDistribution,
    head_of,
)
from speculation.sampling.noise import Floats, Tokens

Row = Callable[[int], Distribution]
"""Row(i): the target's distribution p at the i-th position of the pass, i = 0..K."""

TAIL_SAMPLES: Final = 8


@dataclass(frozen=True)
class Rejection:
    """A draft that fell in `separate`, with the whole p that judged it."""

    token: TokenId
    p: Distribution
    """p rounded to float32, as it is sent."""

    def allows(self, replacement: TokenId) -> bool:
        """A replacement has p > 0 and is not the rejected token (whose residual is 0)."""
        return replacement != self.token and self.p.of(replacement) > 0.0

    def message(self, epoch: int, position: int, u: Sequence[float]) -> Reject:
        """Return p as the edge needs it. u: a uniform in [0, 1) for each sample of the tail."""
        head, tail = self._cut
        drawn = tail.draw(u) if tail.p.size else []
        return Reject(
            epoch,
            position,
            tuple(zip(self.p.tokens[head].tolist(), self.p.p[head].tolist(), strict=True)),
            float(np.float32(tail.p.sum())),
            tuple((token, tail.of(token)) for token in drawn),
        )

    @cached_property
    def _cut(self) -> tuple[Tokens, Distribution]:
        """The head's places in p, and the rest: sorted once, however often it is asked for."""
        head = head_of(self.p)
        tail = np.setdiff1d(np.arange(len(self.p.tokens)), head)
        return head, Distribution(self.p.tokens[tail], self.p.p[tail])


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a pass says: the accepted drafts, then the target's own token or a rejection."""

    tokens: tuple[TokenId, ...]
    accepted: int
    rejection: Rejection | None = None


def judge_coupled(row: Row, draft: Sequence[TokenId], seed: int, at: int) -> Judgement:
    """Accept drafts while they equal the target's tokens; end with the target's own.

    draft: K tokens. at: `noise.place` of the first. The last token is the correction, or, when
    all K stand, the one after them.
    """
    said: list[TokenId] = []
    for i, guess in enumerate(draft):
        said.append(row(i).coupled(seed, at + i))
        if said[-1] != guess:
            return Judgement(tuple(said), accepted=i)
    said.append(row(len(draft)).coupled(seed, at + len(draft)))
    return Judgement(tuple(said), accepted=len(draft))


def judge_separate(
    row: Row, draft: Sequence[TokenId], q: Sequence[int], u: Iterator[float]
) -> Judgement:
    """Accept drafts[i] with probability min(1, p/q); end with a rejection or a draw from p.

    draft, q: K tokens and their weights in 1/Q_SCALE, positive. u: uniforms in [0, 1), fresh.
    """
    for i, (token, weight) in enumerate(zip(draft, q, strict=True)):
        p = as_sent(row(i))
        if next(u) * weight >= p.of(token) * Q_SCALE:  # u < p/q, without the division
            return Judgement(tuple(draft[:i]), accepted=i, rejection=Rejection(token, p))
    said = as_sent(row(len(draft))).at(next(u))
    return Judgement((*draft, said), accepted=len(draft))


def as_sent(p: Distribution) -> Distribution:
    """Round p to float32: acceptance and replacement must judge one and the same distribution."""
    rounded = p.p.astype(np.float32).astype(np.float64)
    return Distribution(p.tokens[rounded > 0.0], rounded[rounded > 0.0])


def replace(
    reject: Reject, q: QuantisedDistribution, u: Iterator[float], *, tail_owed: bool = False
) -> TokenId:
    """Draw from max(0, p - q), normalised, knowing p only as a head and samples of its tail.

    Propose from the head's residual plus the whole tail. A head token stands; a tail token
    stands with probability max(0, 1 - q/p), else all is drawn again: rejection sampling, so the
    result has exactly the residual distribution. Raise TailExhausted when a tail token is proposed and
    none is left: call again with the answer to a Redraw and tail_owed, for that proposal
    stands. Raise RemoteProtocolError when no p here exceeds q: such a Reject cannot be honest.
    """
    tokens, sums = residual(reject, q)
    total = float(sums[-1] if len(sums) else 0.0) + reject.tail_mass
    if total <= 0.0:
        raise RemoteProtocolError("Reject: p exceeds q nowhere, so nothing can be said instead")
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
