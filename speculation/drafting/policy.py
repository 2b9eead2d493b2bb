"""When to draft, and when to send: the edge's decisions, as functions.

None of them can change a token; they only spend time. All times are in seconds.

The edge drafts on while the chain is likely to stand and the window has room.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf
from typing import Final

from speculation.drafting.session import DraftingSession
from speculation.proposing.prompt_lookup import Times
from speculation.protocol.messages import Limits


@dataclass(frozen=True, slots=True)
class DraftSettings:
    """The edge's settings."""

    min_survival: float = 0.1
    """Stop drafting when the estimate that the whole chain stands falls below this.

    Measured on Qwen2.5-Coder 0.5B/1.5B: 0.1 keeps 94 % of the accepted length of a fixed 16
    and wastes 40 % of the drafts instead of 68 %.
    """

    flush_tokens: int = 2
    """Send as soon as this many guesses wait: one a message costs bytes, many cost time. More
    may wait where more is away, see `should_flush`."""

    rests: bool = True
    """Draft less where drafts are useless. With fill `never` that would wait for ever."""


PATIENCE: Final = 6
"""Misses in a row before the edge rests. In the simulator this costs poor drafts (chat, .73 of
them right) nothing; a patience of 4 costs 2 %."""

LONGEST_REST: Final = 32
"""Tokens: how soon a drafter that was useless for long is tried again."""


def rest(misses: int) -> int:
    """Return how many tokens to leave to the target alone after so many misses in a row.

    A miss is a chain whose first guess was wrong. Reading drafts costs the verifier something
    even where it judges none, so the edge tries again after 1, 2, 4, ... tokens.
    """
    return 0 if misses < PATIENCE else min(2 ** (misses - PATIENCE), LONGEST_REST)


UNUSED_PATIENCE: Final = 24
"""Commits without a guess, beyond those that a round trip may hold, before the edge rests. In
the simulator this costs at most .5 % at 72/24, 146/43 and 10/5 ms, and saves up to a quarter of
the drafts; 16 cost chat 2 %."""

TRIED: Final = 8
"""Of LONGEST_REST tokens: for how many, and those of a round trip, it drafts all the same."""

MOST_DOUBLED: Final = 2
"""How often LONGEST_REST is doubled for it, once for each try that nobody took either."""


def resting(pacing: DraftSettings, session: DraftingSession, times: Times) -> bool:
    """Return whether drafting is left alone for a while.

    Because the guesses are wrong, or because the verifier takes none of them although they
    are right: its rows are dear, or it has others to serve.
    """
    if not pacing.rests:
        return False
    if session.since_break < rest(session.misses):
        return True
    under_way = 2 * times.rtt_s / times.pass_s if times.pass_s > 0.0 else inf
    unused = session.unused - UNUSED_PATIENCE - under_way
    if unused <= 0.0:
        return False
    period = LONGEST_REST * 2 ** min(unused // TRIED, MOST_DOUBLED)
    return len(session.committed) % period >= TRIED + under_way


def window(limits: Limits, times: Times) -> int:
    """Return how many unverified tokens keep every pass full.

    While one pass judges max_verify tokens, the edge must make those of the next one: what it
    can draft in a pass and a round trip comes on top. Less leaves the next pass empty. Before
    the first pass (pass_s 0) its length is not known: all there may be.
    """
    if times.pass_s == 0.0:
        return limits.max_ahead
    ahead = (times.pass_s + times.rtt_s) / times.draft_s if times.draft_s > 0.0 else inf
    return ceil(min(limits.max_ahead, limits.max_verify + ahead))


def may_draft(pacing: DraftSettings, session: DraftingSession, times: Times, room: int) -> bool:
    """Return whether the edge should guess one more token. room: of the chain."""
    if len(session.chain) >= room or session.survival < pacing.min_survival:
        return False
    return not resting(pacing, session, times)


MAY_WAIT: Final = 1 / 8
"""Of the guesses that are away: the next passes have enough of those. A message costs an end
of one core a millisecond or two. In the simulator no host loses, and code sends a byte a token
less."""


def should_flush(
    pacing: DraftSettings, session: DraftingSession, *, drafting: bool, separate: bool
) -> bool:
    """Return whether to send now. drafting: another guess is about to be made.

    In `separate` every guess is sent at once: were its sending to depend on its value, the
    drafts that arrive in time for a pass would not have the distribution q any more.
    """
    enough = max(pacing.flush_tokens, MAY_WAIT * session.away)
    return session.unsent > 0 and (separate or not drafting or session.unsent >= enough)
