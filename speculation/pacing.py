"""When to draft, and when to send: the edge's decisions, as functions.

None of them can change a token; they only spend time. All times are in seconds.

The edge drafts on while the chain is likely to stand and the window has room.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import ceil, inf
from typing import Final

from speculation.branches import Growing
from speculation.drafting import DraftingSession
from speculation.lookup import Times
from speculation.messages import Limits


@dataclass(frozen=True, slots=True)
class DraftPacing:
    """The edge's settings."""

    min_survival: float = 0.1
    """Stop drafting when the estimate that the whole chain stands falls below this.

    Measured on Qwen2.5-Coder 0.5B/1.5B: 0.1 keeps 94 % of the accepted length of a fixed 16
    and wastes 40 % of the drafts instead of 68 %.
    """

    flush_tokens: int = 2
    """Send as soon as this many guesses wait: one a message costs bytes, many cost time. More
    may wait where more is away, see `should_flush`."""

    branch_tokens: int = 4
    """Guesses of a branch; 0: no branches. They pay where a draft step is short beside a pass:
    in the simulator maths and chat gain 1 to 9 % at 72/7 ms, and nothing at 72/24."""

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


def resting(pacing: DraftPacing, session: DraftingSession, times: Times) -> bool:
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


def may_draft(pacing: DraftPacing, session: DraftingSession, times: Times, room: int) -> bool:
    """Return whether the edge should guess one more token. room: of the chain."""
    if len(session.chain) >= room or session.survival < pacing.min_survival:
        return False
    return not resting(pacing, session, times)


MAY_WAIT: Final = 1 / 8
"""Of the guesses that are away: the next passes have enough of those. A message costs an end
of one core a millisecond or two. In the simulator no host loses, and code sends a byte a token
less."""


def should_flush(
    pacing: DraftPacing, session: DraftingSession, *, drafting: bool, separate: bool
) -> bool:
    """Return whether to send now. drafting: another guess is about to be made.

    In `separate` every guess is sent at once: were its sending to depend on its value, the
    drafts that arrive in time for a pass would not have the law q any more.
    """
    enough = max(pacing.flush_tokens, MAY_WAIT * session.away)
    return session.unsent > 0 and (separate or not drafting or session.unsent >= enough)


BRANCH_EARNS: Final = 3
"""Times its cost, or a branch is not drafted. In the simulator 1 costs chat 2 % where three
draft steps fill a pass; where ten do, 0 to 3 differ by 1 %."""

SENDING_SAVES: Final = 0.05
"""Of a pass: what having a branch at the verifier already must be expected to save. Less costs
bytes for little: in the simulator none are sent at 10 ms, and speeds differ by 1 %."""

LEAST_BRANCH: Final = 0.1
"""No branch less likely to be taken is worth its steps, however far the verifier. In the
simulator .05 is faster by 1 % at most, for a quarter more steps at 200 ms."""


def may_grow(pacing: DraftPacing, session: DraftingSession, branch: Growing) -> bool:
    """Return whether a branch should have one more guess."""
    return len(branch.guesses) < pacing.branch_tokens and session.may_grow(branch)


def branch(pacing: DraftPacing, session: DraftingSession, times: Times) -> Growing | None:
    """Return the branch to draft at while the chain needs nothing, if one is worth it.

    If it is taken, its guesses are at the verifier sooner by their steps, and by a round trip
    if it was sent before. Its cost: a Commit that comes meanwhile, as one does in every pass,
    finds the draft model busy for half a step.
    """
    if resting(pacing, session, times):
        return None
    steps_s = pacing.branch_tokens * times.draft_s
    saved_s = times.rtt_s + steps_s
    if pacing.branch_tokens == 0 or not 0.0 < saved_s < inf:
        return None
    late_s = times.draft_s / 2 * steps_s / times.pass_s if times.pass_s > 0.0 else 0.0
    return session.branches.best(
        session.chain,
        len(session.committed),
        least=max(LEAST_BRANCH, BRANCH_EARNS * late_s / saved_s),
        may_grow=partial(may_grow, pacing, session),
    )


def should_send(session: DraftingSession, branch: Growing, times: Times) -> bool:
    """Return whether the verifier should have a branch that grows no more before it is taken.

    Else the edge keeps it: when it is taken it is the next chain, and is sent as such.
    """
    chance = session.branches.chance(session.chain, len(session.committed), branch)
    return chance * times.rtt_s >= SENDING_SAVES * times.pass_s
