"""When to draft and when to send. A policy cannot change a token; it only spends time.

Judging and even reading draft tokens costs the verifier something. There are two signs that
this cost earns nothing, and each begins a *rest* that a single success ends:

    misses   chains in a row whose first token was rejected: the draft model is wrong here
    unused   Commits in a row that agree with the chain and took nothing from it: rows are dear
             at the verifier, or it has other sessions to serve
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf
from typing import Final, Protocol

from picospec.speculation.drafting.session import DraftingSession
from picospec.speculation.proposing.proposer import Latencies
from picospec.speculation.protocol.messages import Limits

MAX_UNSENT_SHARE: Final = 1 / 8
"""This share of the draft tokens away may wait to be sent: the passes that are about to start
have enough of those. Each message costs either end a millisecond or two of processor time."""

MAX_MISSES: Final = 6
"""The edge rests after so many misses in a row. Found with `python -m
picospec.bench.simulator`: 4 slows chat with poor drafts by 2 %, 6 does not."""

MAX_UNUSED: Final = 24
"""The edge rests after so many unused Commits in a row, beyond those that a round trip may
hold. Found with `python -m picospec.bench.predictions`: 16 slows chat by 2 %, 24 by at most 0.5
%."""

MAX_REST_TOKENS: Final = 32
"""A resting edge tries again after so many committed tokens at the latest."""

PROBE_TOKENS: Final = 8
"""An edge whose drafts were unused tries again during so many committed tokens."""

MAX_DOUBLINGS: Final = 2
"""MAX_REST_TOKENS is doubled so often at most for unused drafts, once for each try that failed
too."""


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


def should_rest(session: DraftingSession, latencies: Latencies) -> bool:
    """Return whether the edge should draft nothing now.

    Misses: rest for 1, 2, 4, ... committed tokens after the chain broke. Unused: rest in all of
    a period but its first tokens. The Commits of two round trips cannot know of a try yet, so a
    try lasts that much longer, and the rest begins that much later.
    """
    excess_misses = session.misses - MAX_MISSES
    if excess_misses >= 0 and session.since_break < min(2**excess_misses, MAX_REST_TOKENS):
        return True
    on_the_way = 2 * latencies.rtt_s / latencies.pass_s if latencies.pass_s > 0.0 else inf
    excess = session.unused - MAX_UNUSED - on_the_way
    if excess <= 0.0:
        return False
    period = MAX_REST_TOKENS * 2 ** min(excess // PROBE_TOKENS, MAX_DOUBLINGS)
    return len(session.committed) % period >= PROBE_TOKENS + on_the_way
