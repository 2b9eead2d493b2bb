"""How long to hold a session's pass for draft tokens. A hold cannot change a token.

A pass starts at once unless draft tokens are about to arrive that are worth the wait: a short
hold trades a fill-in pass (one token) for a pass that commits several.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Final

from picospec.speculation.protocol.messages import Fill
from picospec.speculation.verifying.arrivals import LATE_INTERVALS, Arrivals
from picospec.speculation.verifying.latency import PassLatency
from picospec.speculation.verifying.row_allocation import best_rate, expected_tokens
from picospec.speculation.verifying.session import VerifyingSession

MAX_HELD_FOR: Final = 4
"""Pending draft tokens from which on no pass is held: more would come too late to earn much."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A session that could start a pass now; the times are explained in Arrivals."""

    fill: Fill
    pending: int
    acceptance: float
    due_s: float
    behind: int
    interval_s: float
    restart_s: float


def waiting(session: VerifyingSession, arrivals: Arrivals, now: float) -> Waiting:
    """Return what decides how long to hold the session's pass."""
    fill, acceptance = session.request.fill, session.chain.acceptance
    due_s, behind = arrivals.due_s(now), arrivals.behind(session)
    interval_s, restart_s = arrivals.interval_s, arrivals.restart_s
    return Waiting(fill, session.pending, acceptance, due_s, behind, interval_s, restart_s)


def hold_s(session: Waiting, latency: PassLatency, max_verify: int) -> float:
    """Return how many seconds to hold the pass: 0 starts it now, inf waits for a draft. Ask
    again whenever one arrives. max_verify: draft tokens that a pass may judge."""
    if session.fill == "never":
        return 0.0 if session.pending else inf
    if session.fill == "always" or session.due_s == inf:
        return 0.0
    worth = _is_worth_waiting(session, latency, max_verify)
    return max(0.0, session.due_s + LATE_INTERVALS * session.interval_s) if worth else 0.0


def _is_worth_waiting(session: Waiting, latency: PassLatency, max_verify: int) -> bool:
    """Return whether some number of draft tokens to come earns more than the time they take.

    This is an optimal stopping rule. Starting with k draft tokens instead of the n pending ones
    commits a^(n+1) + ... + a^k tokens more, and takes the wait and T(k+1) - T(n+1) longer,
    where T(r) is the latency of r rows. In that time the session would have gone on at its
    `best_rate`. The draft tokens `behind`, which the text has overtaken, arrive first, and the
    later ones are of use only if all of these equal the text.
    """
    rate = best_rate(session.acceptance, latency, max_verify, restart_s=session.restart_s)
    wait_s = max(0.0, session.due_s) + session.behind * session.interval_s
    reached = session.acceptance**session.behind
    tokens_now = expected_tokens(session.acceptance, session.pending)
    pass_now_s = latency.of(session.pending + 1)
    for k in range(session.pending + 1, MAX_HELD_FOR + 1):
        gain = expected_tokens(session.acceptance, k) - tokens_now
        if reached * gain > rate * (wait_s + (latency.of(k + 1) - pass_now_s)):
            return True
        wait_s += session.interval_s
    return False
