"""Tests of the edge begin with these sessions and machines, which a verifier may reject."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import repeat

import numpy as np

from speculation.distributions import Q_SCALE, QuantisedDistribution
from speculation.draft_machine import DraftMachine, Outcome
from speculation.draft_policy import DraftPolicy
from speculation.draft_token import DraftToken
from speculation.drafting import DraftingSession
from speculation.judges import JUDGES
from speculation.messages import Open, Reject, Sampling
from speculation.model_facts import Limits, TokenId
from speculation.proposer import Latencies, Proposer
from speculation.speedup import SpeedupEstimates

STOP = 99
Q = QuantisedDistribution(np.array([1, 2]), np.array([Q_SCALE // 2, Q_SCALE // 2]))
REJECT = Reject(0, 0, 0, ((1, 0.25), (3, 0.75)), 0.0)
ONLY_TAIL = Reject(0, 0, 0, ((1, 0.0),), 1.0, ((2, 0.1),))
LIMITS = Limits(max_verify=4, max_ahead=16)


def drafting(*chain: TokenId, max_tokens: int = 10) -> DraftingSession:
    session = DraftingSession(max_tokens=max_tokens, stop_tokens=(STOP,))
    for token in chain:
        session.extend(DraftToken(token, 0.5))
    return session


def chain_of(session: DraftingSession) -> list[TokenId]:
    return [drafted.token for drafted in session.chain]


@dataclass
class Policy:
    """A policy that a test sets."""

    drafts: int = 100
    """Draft tokens in a chain that steps extend, at most."""

    looks_up: int = 100
    """Draft tokens in a chain that is extended without steps, at most."""

    unsent: int = 1
    """Draft tokens to send at once, at least, while steps are made."""

    asked: list[Limits] = field(default_factory=list)

    def may_draft(self, session: DraftingSession, latencies: Latencies, limits: Limits) -> bool:
        self.asked.append(limits)
        return len(session.chain) < self.drafts

    def may_look_up(
        self, session: DraftingSession, latencies: Latencies, limits: Limits
    ) -> bool:
        return len(session.chain) < self.looks_up

    def should_send(self, session: DraftingSession, *, drafting: bool) -> bool:
        return session.unsent >= (self.unsent if drafting else 1)


def machine(
    policy: DraftPolicy | None = None,
    *,
    limits: Limits = LIMITS,
    drafts: bool = True,
    lookup: Proposer | None = None,
    speedups: SpeedupEstimates | None = None,
    **changes: object,
) -> DraftMachine:
    """Return a machine whose request has these changes."""
    fields = {"max_tokens": 100, "stop_tokens": (STOP,), **changes}
    request = Open("m", "v", (1,), Sampling(), 0, **fields)  # type: ignore[arg-type]
    half = JUDGES[request.judge].edge(request, repeat(0.9))
    return DraftMachine(
        request, policy or Policy(), limits, half, rtt_s=lambda: 0.05, drafts=drafts,
        lookup=lookup, speedups=(lambda: speedups) if speedups else None,
    )  # fmt: skip


def step(edge: DraftMachine, *tokens: TokenId, took_s: float = 0.01) -> Outcome:
    """Let the machine ask, and the draft model answer; return what the machine asked."""
    outcome = edge.next(5.0, busy=False)
    assert outcome.step
    edge.drafted(outcome.step, [DraftToken(t, 0.9) for t in tokens], 5.0 + took_s)
    return outcome
