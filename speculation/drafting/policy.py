"""When to draft and when to send. A policy cannot change a token; it only spends time."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf
from typing import Final, Protocol

from picospec.speculation.drafting.rest import should_rest
from picospec.speculation.drafting.session import DraftingSession
from picospec.speculation.proposing.proposer import Latencies
from picospec.speculation.protocol.messages import Limits

MAX_UNSENT_SHARE: Final = 1 / 8
"""This share of the draft tokens away may wait to be sent: the passes that are about to start
have enough of those. Each message costs either end a millisecond or two of processor time."""


class DraftPolicy(Protocol):
    """The decisions in which systems differ. bench.round_policy has those of published ones."""

    def may_draft(self, session: DraftingSession, latencies: Latencies, limits: Limits) -> bool:
        """Return whether the draft model should make a step that extends the chain."""

    def may_look_up(
        self, session: DraftingSession, latencies: Latencies, limits: Limits
    ) -> bool:
        """Return whether a draft token that needs no step should extend the chain."""

    def should_send(self, session: DraftingSession, *, drafting: bool) -> bool:
        """Return whether to send what is unsent. drafting: a step is about to be made."""


@dataclass(frozen=True, slots=True)
class DraftSettings:
    min_survival: float = 0.1
    """The edge stops drafting when the probability that the whole chain is accepted falls
    below this. On the Qwen pair 0.1 keeps 94 % of the accepted length of chains of 16 tokens,
    and wastes 40 % of the draft tokens instead of 68 %."""

    flush_tokens: int = 2
    """The edge sends as soon as this many draft tokens wait: one a message costs bytes, many
    cost time."""


@dataclass(frozen=True, slots=True)
class StreamPolicy:
    """PicoSpec's own: draft while the chain is likely to be accepted, and never wait for a
    verdict."""

    settings: DraftSettings = DraftSettings()
    may_rest: bool = True
    """It is false with fill `never`: a verifier that must have a draft token would wait for
    ever."""

    def may_draft(self, session: DraftingSession, latencies: Latencies, limits: Limits) -> bool:
        return self._may_extend(session, latencies, window(limits, latencies))

    def may_look_up(
        self, session: DraftingSession, latencies: Latencies, limits: Limits
    ) -> bool:
        return self._may_extend(session, latencies, limits.max_ahead)

    def _may_extend(self, session: DraftingSession, latencies: Latencies, room: int) -> bool:
        if len(session.chain) >= room or session.survival < self.settings.min_survival:
            return False
        return not (self.may_rest and should_rest(session, latencies))

    def should_send(self, session: DraftingSession, *, drafting: bool) -> bool:
        enough = max(self.settings.flush_tokens, MAX_UNSENT_SHARE * session.away)
        return session.unsent > 0 and (not drafting or session.unsent >= enough)


def window(limits: Limits, latencies: Latencies) -> int:
    """Return how many draft tokens in the chain keep every pass full: max_verify, and as many
    as the edge can draft during a pass and a round trip. Before the first pass its latency is
    not known, and the chain may be as long as the verifier allows."""
    if latencies.pass_s == 0.0:
        return limits.max_ahead
    waited_s = latencies.pass_s + latencies.rtt_s
    ahead = waited_s / latencies.draft_s if latencies.draft_s > 0.0 else inf
    return ceil(min(limits.max_ahead, limits.max_verify + ahead))
