"""A DraftMachine whose policy a test sets, and a draft model that answers it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import repeat

from picospec.speculation.drafting.machine import DraftMachine
from picospec.speculation.drafting.outcome import Outcome
from picospec.speculation.drafting.policy import DraftPolicy
from picospec.speculation.drafting.session import DraftingSession
from picospec.speculation.judges.judges import JUDGES
from picospec.speculation.proposing.prompt_lookup import PromptLookup
from picospec.speculation.proposing.proposer import Latencies
from picospec.speculation.protocol.messages import Limits, Open, Sampling
from picospec.speculation.sampling.draft_token import DraftToken
from tests.speculation.draft_sessions import STOP

LIMITS = Limits(max_verify=4, max_ahead=16)
COPIED = tuple(range(200, 240))


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
    judge: str = "coupled",
    max_tokens: int = 100,
    drafts: bool = True,
    prompt: tuple[int, ...] | None = None,
    unused: int = 0,
) -> DraftMachine:
    request = Open(
        "m", "v", (1,), Sampling(), 0, max_tokens, (STOP,), judge=judge,  # type: ignore[arg-type]
    )  # fmt: skip
    return DraftMachine(
        request,
        policy or Policy(),
        LIMITS,
        JUDGES[request.judge].edge(request, repeat(0.9)),
        rtt_s=lambda: 0.05,
        drafts=drafts,
        lookup=None if prompt is None else PromptLookup(prompt),
        unused=unused,
    )


def step(edge: DraftMachine, *tokens: int, took_s: float = 0.01) -> Outcome:
    """Let the machine ask, and the draft model answer; return what the machine asked."""
    outcome = edge.next(5.0, busy=False)
    assert outcome.step
    edge.drafted(outcome.step, [DraftToken(t, 0.9) for t in tokens], 5.0 + took_s)
    return outcome
