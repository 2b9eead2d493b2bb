"""When to start a pass, and what it judges: the verifier's decisions, as functions.

None of them can change a token; they only spend time. All times are in seconds.

A pass starts at once unless drafts are about to arrive that are worth the wait: then a short
hold trades a fill-in (one token) for a verified run (several).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from speculation.protocol.messages import Fill
from speculation.verifying.arrivals import LATE_INTERVALS, Arrivals
from speculation.verifying.row_allocation import PassLatency, best_rate, expected_tokens, share
from speculation.verifying.session import VerifyingSession

HOLD_DRAFTS: Final = 4
"""No pass is held once this many drafts are pending: more would come too late to earn much."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A session that could start a pass now."""

    fill: Fill
    pending: int
    acceptance: float
    due_s: float
    behind: int
    interval_s: float
    restart_s: float
    """See Arrivals."""

    times: PassLatency
    most: int
    """Drafts that a pass may judge: max_verify."""


def hold_s(
    session: VerifyingSession, arrivals: Arrivals, times: PassLatency, most: int, now: float
) -> float:
    """Return how long to hold the session's next pass, as `hold` says. most: max_verify."""
    return hold(
        Waiting(
            session.request.fill,
            session.pending,
            session.chain.acceptance,
            arrivals.due_s(now),
            arrivals.behind(session),
            arrivals.interval_s,
            arrivals.restart_s,
            times,
            most,
        )
    )


def hold(session: Waiting) -> float:
    """Return how long to hold the pass: 0 starts it now, inf waits for a draft.

    Asked again whenever a draft arrives; until the next one is late, at most.
    """
    if session.fill == "never":
        return 0.0 if session.pending else inf
    if session.fill == "always" or session.due_s == inf or not _worth_waiting(session):
        return 0.0
    return max(0.0, session.due_s + LATE_INTERVALS * session.interval_s)


def _worth_waiting(session: Waiting) -> bool:
    """Whether some number of drafts to come earns more than the time until they are there.

    An optimal stopping rule: starting with k drafts instead of the n pending commits
    a^(n+1) + ... + a^k tokens more and takes the wait and T(k+1) - T(n+1) longer; meanwhile
    the session would have gone on at its rate. Drafts that the text has overtaken come first,
    and must equal it.
    """
    rate = best_rate(
        session.acceptance, session.times, session.most, restart_s=session.restart_s
    )
    wait_s = max(0.0, session.due_s) + session.behind * session.interval_s
    chance = session.acceptance**session.behind
    for k in range(session.pending + 1, HOLD_DRAFTS + 1):
        if chance * _gain(session, k) > rate * (wait_s + _longer_s(session, k)):
            return True
        wait_s += session.interval_s
    return False


def _gain(session: Waiting, drafts: int) -> float:
    now = expected_tokens(session.acceptance, session.pending)
    return expected_tokens(session.acceptance, drafts) - now


def _longer_s(session: Waiting, drafts: int) -> float:
    return session.times.of(drafts + 1) - session.times.of(session.pending + 1)


def starters(holds_s: Sequence[float]) -> list[int]:
    """Return which sessions the next pass takes, none if it should not start yet.

    It starts when one of them need wait no longer. Then it takes all, but those that must have
    a draft: who stays behind waits for a whole pass, and that is longer than any hold is worth.
    """
    if not any(hold_s <= 0.0 for hold_s in holds_s):
        return []
    return [i for i, hold_s in enumerate(holds_s) if hold_s < inf]


def share_rows(
    sessions: Sequence[VerifyingSession], times: PassLatency, *, most: int
) -> list[int]:
    """Return how many drafts of each session the next pass judges, as budget.share says.

    most: rows the pass may have in all. Fill `never` is for fewest passes: where no session has
    another, all drafts are judged.
    """
    return share(
        [session.affordable for session in sessions],
        [session.chain.acceptance for session in sessions],
        times,
        most=most,
        whole=all(session.request.fill == "never" for session in sessions),
    )
