"""Drafting sessions to begin a test with, and what a verifier rejects."""

from __future__ import annotations

import numpy as np

from picospec.speculation.drafting.session import DraftingSession
from picospec.speculation.protocol.messages import Reject
from picospec.speculation.sampling.distributions import Q_SCALE, QuantisedDistribution
from picospec.speculation.sampling.draft_token import DraftToken

STOP = 99
Q = QuantisedDistribution(np.array([1, 2]), np.array([Q_SCALE // 2, Q_SCALE // 2]))
REJECT = Reject(0, 0, 0, ((1, 0.25), (3, 0.75)), 0.0)
ONLY_TAIL = Reject(0, 0, 0, ((1, 0.0),), 1.0, ((2, 0.1),))


def edge(
    *chain: int, q: QuantisedDistribution | None = None, max_tokens: int = 10
) -> DraftingSession:
    session = DraftingSession(max_tokens=max_tokens, stop_tokens=(STOP,))
    for token in chain:
        session.extend(DraftToken(token, 0.5, q))
    return session


def chain_of(session: DraftingSession) -> list[int]:
    return [drafted.token for drafted in session.chain]
