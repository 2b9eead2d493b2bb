"""Verifying sessions to begin a test with, and a pass in one call."""

from __future__ import annotations

import copy
from itertools import repeat
from typing import Any

import numpy as np

from picospec.speculation.judges.judge import Judgement, Rejection
from picospec.speculation.protocol.messages import Draft, Limits, Open, Sampling
from picospec.speculation.sampling.distributions import Q_SCALE, Distribution
from picospec.speculation.verifying.session import Pass, VerifyingSession

V = 100
P = Distribution(np.array([1, 2, 3]), np.array([0.5, 0.25, 0.25]))
LIMITS = Limits(max_verify=4, max_ahead=8)


def opening(judge: str = "coupled", **changes: object) -> Open:
    fields = {"max_tokens": 50, "stop_tokens": (99,), **changes}
    return Open("m", "v", (1,), Sampling(), 0, judge=judge, **fields)  # type: ignore[arg-type]


def session(judge: str = "coupled", **changes: object) -> VerifyingSession:
    request = opening(judge, **changes)
    return VerifyingSession(request, LIMITS, vocabulary_size=V, u=repeat(0.5))


def begin(verifier: VerifyingSession, most: int = 16) -> Pass:
    """Begin a pass over as many draft tokens as it may have, at most `most`."""
    return verifier.begin(len(verifier.plan(most)))


def generate(verifier: VerifyingSession, *tokens: int, accepted: int = 0) -> list[Any]:
    """Run a pass that generates these tokens."""
    begin(verifier)
    return verifier.resolve(Judgement(tokens, accepted))


def rejecting(*committed: int) -> VerifyingSession:
    """A `separate` session that is owed the recovered token for token 1 after `committed`."""
    verifier = session("separate")
    for token in committed:
        generate(verifier, token)
    verifier.receive(Draft(0, len(committed), 0, (1,), (Q_SCALE,)))
    begin(verifier)
    verifier.resolve(Judgement((), 0, Rejection(1, P)))
    return verifier


def state(verifier: VerifyingSession) -> dict[str, Any]:
    parts = {"chain": vars(verifier.chain), "_judge": vars(verifier._judge)}
    return copy.deepcopy({**vars(verifier), **parts})
