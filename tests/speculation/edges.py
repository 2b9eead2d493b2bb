"""Drafting sessions to begin a test with, and what a verifier refuses."""

from __future__ import annotations

import numpy as np

from speculation.drafting import DraftingSession
from speculation.guess import Guess
from speculation.laws import Q_SCALE, DraftLaw
from speculation.messages import Refuse

STOP = 99
Q = DraftLaw(np.array([1, 2]), np.array([Q_SCALE // 2, Q_SCALE // 2]))
REFUSE = Refuse(0, 0, ((1, 0.25), (3, 0.75)), 0.0)
TAILED = Refuse(0, 0, ((1, 0.0),), 1.0, ((2, 0.1),))


def edge(*guesses: int, q: DraftLaw | None = None, max_tokens: int = 10) -> DraftingSession:
    session = DraftingSession(max_tokens=max_tokens, stop_tokens=(STOP,))
    for token in guesses:
        session.extend(Guess(token, 0.5, q))
    return session
