"""When the edge leaves the target alone for a while, because its draft tokens gain nothing.

Judging and even reading draft tokens costs the verifier something. There are two signs that
this cost earns nothing, and each begins a rest that a single success ends:

    misses   chains in a row whose first token was rejected: the draft model is wrong here
    unused   Commits in a row that agree with the chain and took nothing from it: rows are dear
             at the verifier, or it has other sessions to serve
"""

from __future__ import annotations

from math import inf
from typing import Final

from picospec.speculation.drafting.session import DraftingSession
from picospec.speculation.proposing.proposer import Latencies

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
