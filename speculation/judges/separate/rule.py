"""The rule of a pass in `separate`: rejection sampling, up to the first rejection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from picospec.speculation.judges.judge import Judgement, Rejection, Row
from picospec.speculation.protocol.messages import TokenId
from picospec.speculation.sampling.distributions import Q_SCALE, Distribution


@dataclass(frozen=True, slots=True)
class Separate:
    q: tuple[int, ...]
    """Each of the K draft tokens has its weight in q here, in 1/Q_SCALE; it is positive."""

    u: tuple[float, ...]
    """K + 1 fresh uniforms in [0, 1); inf for a draft token that is rejected whatever its p."""

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
