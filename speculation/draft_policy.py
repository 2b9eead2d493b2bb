"""Decides when to draft and when to send. A policy cannot change a token; it only spends time.

Judging and even reading draft tokens costs the verifier time. Where chains in a row are
rejected at their first token, the draft model is wrong here, and the edge pauses for some
tokens. Where draft tokens earn less than they cost, it pauses too (speculation.speedup).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf
from typing import Final, Protocol

from speculation.drafting import DraftingSession
from speculation.model_facts import Limits
from speculation.proposer import Latencies

MIN_SURVIVAL: Final = 0.1
"""The edge stops drafting when the probability that the whole chain is accepted falls below
this. On the Qwen pair 0.1 keeps 94 % of the accepted length of chains of 16 tokens, and wastes
40 % of the draft tokens instead of 68 %."""

MIN_SENT_TOKENS: Final = 2
"""A message waits for this many draft tokens while drafting goes on: code has half the messages
at 0.98 to 1.00 of the speed (docs/decisions.md)."""

MAX_UNSENT_SHARE: Final = 1 / 8
"""This share of the draft tokens on their way may wait to be sent: the passes about to start
have enough without them. Each message costs either end processor time. At passes of 6 to 25 ms
it gains nothing to send earlier (docs/decisions.md)."""

MAX_MISSES: Final = 6
"""The edge pauses after this many misses in a row. Found with `python -m
bench.simulator`: 4 slows chat with poor drafts by 2 %, 6 does not."""

MAX_PAUSE_TOKENS: Final = 32
"""A pausing edge tries again after at most this many committed tokens."""


class DraftPolicy(Protocol):
    """Decides as a system does; bench.run.round_policy has those of published ones."""

    def may_draft(self, session: DraftingSession, latencies: Latencies, limits: Limits) -> bool:
        """Return True if the draft model should make a step that extends the chain."""

    def may_look_up(
        self, session: DraftingSession, latencies: Latencies, limits: Limits
    ) -> bool:
        """Return True if a draft token that needs no step should extend the chain."""

    def should_send(self, session: DraftingSession, *, drafting: bool) -> bool:
        """Return True if unsent draft tokens should be sent. drafting: a step is about to
        start."""


@dataclass(frozen=True, slots=True)
class StreamPolicy:
    """PicoSpec's own policy drafts while the chain is likely to be accepted, and never waits
    for a verdict."""

    may_pause: bool = True
    """False with fill `never`: a verifier that must have a draft token would wait for ever."""

    def may_draft(self, session: DraftingSession, latencies: Latencies, limits: Limits) -> bool:
        return self._may_extend(session, window(limits, latencies))

    def may_look_up(
        self, session: DraftingSession, latencies: Latencies, limits: Limits
    ) -> bool:
        return self._may_extend(session, limits.max_ahead)

    def _may_extend(self, session: DraftingSession, room: int) -> bool:
        if len(session.chain) >= room or session.survival < MIN_SURVIVAL:
            return False
        return not (self.may_pause and should_pause(session))

    def should_send(self, session: DraftingSession, *, drafting: bool) -> bool:
        enough = max(MIN_SENT_TOKENS, MAX_UNSENT_SHARE * session.in_flight)
        return session.unsent > 0 and (not drafting or session.unsent >= enough)


def window(limits: Limits, latencies: Latencies) -> int:
    """Return the number of draft tokens in the chain that keeps every pass full: max_verify,
    and as many as the edge can draft during a pass and a round trip. Before the first pass its
    latency is unknown, and the chain may be as long as the verifier allows."""
    if latencies.pass_s == 0.0:
        return limits.max_ahead
    waited_s = latencies.pass_s + latencies.rtt_s
    ahead = waited_s / latencies.draft_s if latencies.draft_s > 0.0 else inf
    return ceil(min(limits.max_ahead, limits.max_verify + ahead))


def should_pause(session: DraftingSession) -> bool:
    """Return True if the edge should draft nothing now: after misses, it pauses for 1, 2, 4,
    ... committed tokens from the break of the chain."""
    excess = session.misses - MAX_MISSES
    return excess >= 0 and session.since_break < min(2**excess, MAX_PAUSE_TOKENS)
