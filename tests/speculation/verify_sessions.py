"""Verifying sessions to begin a test with, and a pass in one call."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from speculation.protocol.messages import Draft, Limits, Open, Sampling
from speculation.sampling.distributions import Q_SCALE, Distribution
from speculation.sampling.judging import Judgement, Rejection
from speculation.verifying.session import VerifyingSession

V = 100
P = Distribution(np.array([1, 2, 3]), np.array([0.5, 0.25, 0.25]))


def session(judge: str = "coupled", **changes: object) -> VerifyingSession:
    fields = {"max_tokens": 50, "stop_tokens": (99,), **changes}
    request = Open("m", "v", (1,), Sampling(), 0, judge=judge, **fields)  # type: ignore[arg-type]
    return VerifyingSession(request, Limits(max_verify=4, max_ahead=8), vocabulary_size=V)


def say(verifier: VerifyingSession, *tokens: int, accepted: int = 0) -> list[Any]:
    """Run a pass that says these tokens."""
    verifier.begin(16)
    return verifier.resolve(Judgement(tokens, accepted))


def refusing(*committed: int) -> VerifyingSession:
    """A `separate` session that awaits a replacement of token 1 after `committed`."""
    verifier = session("separate")
    for token in committed:
        say(verifier, token)
    verifier.receive(Draft(0, len(committed), 0, (1,), (Q_SCALE,)))
    verifier.begin(16)
    verifier.resolve(Judgement((), 0, Rejection(1, P)))
    return verifier


def state(verifier: VerifyingSession) -> dict[str, Any]:
    return copy.deepcopy({**vars(verifier), "chain": vars(verifier.chain)})
