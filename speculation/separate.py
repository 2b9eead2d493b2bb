"""The judge `separate`: rejection sampling, with the recovered token drawn at the edge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from math import inf
from typing import Final

import numpy as np

from speculation.distributions import (
    GREEDY_BELOW,
    Q_SCALE,
    Distribution,
    Logits,
    QuantisedDistribution,
    distribution,
    quantise,
    softmax_of,
)
from speculation.draft_token import DraftSampler, DraftToken
from speculation.errors import RemoteProtocolError
from speculation.judge import EdgeHalf, Judgement, Rejection, Row, Rule, VerifierHalf
from speculation.messages import (
    Answer,
    Commit,
    Draft,
    Open,
    Recovered,
    Redraw,
    Reject,
    Sampling,
)
from speculation.model_facts import TokenId
from speculation.noise import Floats, Tokens

CANDIDATES: Final = 32
"""q has this many tokens. On the Qwen pair 0.852 are accepted with 32, 0.847 with 8."""


class SeparateEdge(EdgeHalf):
    """The edge's half draws draft tokens and the recovered token.

    Each draft token is sent at once. If its value could delay it, the draft tokens that arrive
    in time for a pass would no longer have the distribution q.
    """

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


HEAD_COVERS: Final = 0.999
"""The head of a Reject covers this share of p, if HEAD_TOKENS tokens are enough for that."""

HEAD_TOKENS: Final = 512

TAIL_SAMPLES: Final = 8
"""A Reject has this many samples of the tail; an edge that needs more asks for them."""

MAX_REDRAWS: Final = 32
"""The verifier answers this many Redraws of one rejection. Each brings TAIL_SAMPLES more
samples; a correct edge hardly ever needs two."""


@dataclass(frozen=True, slots=True)
class Separate:
    """The rule of a pass: rejection sampling, up to the first rejection."""

    q: tuple[int, ...]
    """q[i] is the weight of draft token i in its q, in 1/Q_SCALE: [K], positive."""

    u: tuple[float, ...]
    """Fresh uniforms in [0, 1): [K + 1]. inf rejects a draft token whatever its p is."""

    noise = None

    def judge(self, row: Row, draft: Sequence[TokenId]) -> Judgement:
        """Accept draft[i] with probability min(1, p/q), up to a rejection or, after K accepted
        draft tokens, the bonus token."""
        for i, (token, weight) in enumerate(zip(draft, self.q, strict=True)):
            p = as_sent(row(i))
            if self.u[i] * weight >= p.of(token) * Q_SCALE:  # u < p/q, without the division
                return Judgement(tuple(draft[:i]), accepted=i, rejection=Rejection(token, p))
        bonus = as_sent(row(len(draft))).at(self.u[len(draft)])
        return Judgement((*draft, bonus), accepted=len(draft))


def as_sent(p: Distribution) -> Distribution:
    """Round p to float32, as it is sent: acceptance and recovery must use one distribution."""
    rounded = p.p.astype(np.float32).astype(np.float64)
    return Distribution(p.tokens[rounded > 0.0], rounded[rounded > 0.0])


class SeparateVerifier(VerifierHalf):
    """The verifier's half keeps a rejection until the edge has drawn its token.

    The tokens accepted before a rejection are committed with the recovered token, as one pass.
    A rejection that is lost before it reaches the edge has no effect. If an edge has received
    it and needs more samples, its next verifier rejects the draft token unjudged
    (`Open.rejected`).
    """

    def __init__(self, request: Open, u: Iterator[float]) -> None:
        self._u = u
        self.needs_draft = request.rejected
        """The next pass rejects its first draft token, as another verifier did before."""

        self._pending: PendingRejection | None = None

    @property
    def awaited_position(self) -> int | None:
        return None if self._pending is None else self._pending.position

    def check(self, draft: Draft) -> None:
        """Raise RemoteProtocolError unless each draft token has a weight."""
        if draft.q is None or len(draft.q) != len(draft.tokens):
            count = len(draft.q or ())
            raise RemoteProtocolError(
                f"Draft.q: {count} weights for {len(draft.tokens)} tokens"
            )
        if not all(0 < weight <= Q_SCALE for weight in draft.q):
            raise RemoteProtocolError(f"Draft.q: a weight outside 1..{Q_SCALE}")

    def judgeable(self, pending: int, most: int) -> int:
        """Count rows for all draft tokens that a pass may have, whatever is pending. Draft
        tokens depend on those before them: if they decided whether these are judged, the output
        would not have the target's distribution."""
        return most

    def rule(self, start: int, weights: Sequence[int]) -> Rule:
        u = tuple(islice(self._u, len(weights) + 1))
        return Separate(tuple(weights), (inf, *u[1:]) if self.needs_draft else u)

    def rejected(self, rejection: Rejection, commit: Commit) -> Reject:
        self.needs_draft = False
        self._pending = PendingRejection(rejection, commit)
        return self._pending.message(self._u)

    def received(self, answer: Answer, text: Sequence[TokenId]) -> Commit | Reject | None:
        if isinstance(answer, Redraw):
            return self._redrawn(answer)
        return self._recovered(answer, text)

    def _redrawn(self, redraw: Redraw) -> Reject | None:
        """Return the rejection with fresh samples; None if that was done already."""
        pending = self._pending
        if pending is None or redraw.position != pending.position:
            return None
        if redraw.draw != pending.draw + 1:
            return None
        if redraw.draw > MAX_REDRAWS:
            raise RemoteProtocolError(f"Redraw: more than {MAX_REDRAWS} for one rejection")
        self._pending = replace(pending, draw=redraw.draw)
        return self._pending.message(self._u)

    def _recovered(self, recovered: Recovered, text: Sequence[TokenId]) -> Commit | None:
        """Return the Commit of the pass that rejected, or None for a repeated answer."""
        at, token, pending = recovered.position, recovered.token, self._pending
        if at < len(text):
            if text[at] != token:
                raise RemoteProtocolError(f"Recovered.position: {at} is committed")
            return None
        if pending is None or at != pending.position:
            raise RemoteProtocolError(f"Recovered.position: no token is awaited at {at}")
        if not pending.allows(token):
            raise RemoteProtocolError(f"Recovered.token: {token} cannot be the recovered token")
        self._pending = None
        return replace(pending.commit, tokens=(*pending.commit.tokens, token))


@dataclass(frozen=True)
class PendingRejection:
    """A rejection that waits for its recovered token. draw: the number of the latest Redraw."""

    rejection: Rejection
    commit: Commit
    draw: int = 0

    @property
    def position(self) -> int:
        return self.commit.start + len(self.commit.tokens)

    def allows(self, recovered: TokenId) -> bool:
        """Return True if a token can be the recovered one: p(token) > 0, and it is not the
        rejected token, where max(0, p - q) is 0."""
        return recovered != self.rejection.token and self.rejection.p.of(recovered) > 0.0

    def message(self, u: Iterator[float]) -> Reject:
        """Return the Reject to send. u: each sample takes one uniform in [0, 1)."""
        p, (head, tail) = self.rejection.p, self._cut
        drawn = tail.draw(list(islice(u, TAIL_SAMPLES))) if tail.p.size else []
        likely = zip(p.tokens[head].tolist(), p.p[head].tolist(), strict=True)
        samples = tuple((token, tail.of(token)) for token in drawn)
        tail_mass = float(np.float32(tail.p.sum()))
        key = self.commit.epoch, self.position, self.draw
        return Reject(*key, tuple(likely), tail_mass, samples)

    @cached_property
    def _cut(self) -> tuple[Tokens, Distribution]:
        """The indices of the head in p, and the distribution of the tail."""
        p = self.rejection.p
        head = head_of(p)
        tail = np.setdiff1d(np.arange(len(p.tokens)), head)
        return head, Distribution(p.tokens[tail], p.p[tail])


def head_of(p: Distribution) -> Tokens:
    """Return the indices of the head in p: the likeliest tokens that cover HEAD_COVERS of it,
    at most HEAD_TOKENS. If p has no more tokens than that, all of them are the head."""
    order = np.lexsort((p.tokens, -p.p))
    if len(order) <= HEAD_TOKENS:
        return order
    count = int(np.searchsorted(np.cumsum(p.p[order]), HEAD_COVERS)) + 1
    return order[: min(count, HEAD_TOKENS)]
