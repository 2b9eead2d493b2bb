"""Decides when to draft and when to send. A policy cannot change a token; it only spends time.

Judging and even reading draft tokens costs the verifier time. Two signs show that this cost
earns nothing. Each begins a *rest*, which a single success ends:

    misses   chains in a row whose first token was rejected: the draft model is wrong here
    unused   Commits in a row that agree with the chain and accept nothing from it: rows are
             expensive at the verifier, or it has other sessions to serve
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf
from typing import Final, Protocol

from picospec.speculation.drafting.session import DraftingSession
from picospec.speculation.proposing.proposer import Latencies
from picospec.speculation.protocol.messages import Limits

MAX_UNSENT_SHARE: Final = 1 / 8
"""This share of the draft tokens on their way may wait to be sent: the passes about to start
have enough without them. Each message costs either end processor time. At passes of 6 to 25 ms
it gains nothing to send earlier (docs/decisions.md)."""

MAX_MISSES: Final = 6
"""The edge rests after this many misses in a row. Found with `python -m
picospec.bench.simulator`: 4 slows chat with poor drafts by 2 %, 6 does not."""

MAX_UNUSED: Final = 24
"""The edge rests after this many unused Commits in a row, plus those that may be on their way.
Found with `python -m picospec.bench.predictions`: 16 slows chat by 2 %, 24 by at most 0.5 %.
This and the next two were found at passes of BRIEF_PASS_S and more. They count as much time at
shorter passes, so more Commits and tokens: a stall of the link must not look like useless draft
tokens."""

MAX_REST_TOKENS: Final = 32
"""A resting edge tries again after at most this many committed tokens."""

PROBE_TOKENS: Final = 8
"""An edge whose drafts were unused tries again for this many committed tokens."""

BRIEF_PASS_S: Final = 0.1

MAX_DOUBLINGS: Final = 2
"""MAX_REST_TOKENS doubles for each failed try with unused drafts, at most this many times."""


class DraftPolicy(Protocol):
    """The decisions in which systems differ. bench.round_policy has those of published ones."""

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
class DraftSettings:
    min_survival: float = 0.1
    """The edge stops drafting when the probability that the whole chain is accepted falls
    below this. On the Qwen pair 0.1 keeps 94 % of the accepted length of chains of 16 tokens,
    and wastes 40 % of the draft tokens instead of 68 %."""

    flush_tokens: int = 2
    """The edge sends as soon as this many draft tokens wait. One per message costs bytes, many
    cost time."""


@dataclass(frozen=True, slots=True)
class StreamPolicy:
    """PicoSpec's own policy drafts while the chain is likely to be accepted, and never waits
    for a verdict."""

    settings: DraftSettings = DraftSettings()
    may_rest: bool = True
    """False with fill `never`: a verifier that must have a draft token would wait for ever."""

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
        enough = max(self.settings.flush_tokens, MAX_UNSENT_SHARE * session.in_flight)
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


def should_rest(session: DraftingSession, latencies: Latencies) -> bool:
    """Return True if the edge should draft nothing now.

    After misses, the edge rests for 1, 2, 4, ... committed tokens from the break of the chain.
    After unused Commits, it rests in each period except for the first tokens. The Commits of
    two round trips cannot show the effect of a try, so a try lasts that much longer, and the
    rest begins that much later.
    """
    brief = max(1.0, BRIEF_PASS_S / latencies.pass_s) if latencies.pass_s > 0.0 else 1.0
    excess_misses = session.misses - MAX_MISSES
    if excess_misses >= 0 and session.since_break < min(2**excess_misses, MAX_REST_TOKENS):
        return True
    on_the_way = 2 * latencies.rtt_s / latencies.pass_s if latencies.pass_s > 0.0 else inf
    excess = session.unused_commits - MAX_UNUSED * brief - on_the_way
    if excess <= 0.0:
        return False
    probe = PROBE_TOKENS * brief
    period = MAX_REST_TOKENS * brief * 2 ** min(excess // probe, MAX_DOUBLINGS)
    return len(session.committed) % period >= probe + on_the_way
