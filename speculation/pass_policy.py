"""Decides how long a pass waits for drafts, and how many draft tokens it judges. No token
depends on it.

A pass starts at once unless draft tokens are about to arrive that are worth the wait: a short
wait trades a fill-in pass (one token) for a pass that commits several. A row is worth the
tokens that it is likely to commit:

A pass over `rows` rows takes T(rows). From a session whose draft tokens are accepted with
probability a each, it commits 1 + a + ... + a^K tokens for K + 1 rows. On a GPU T hardly grows
and all pending draft tokens are worth judging; on one CPU core T is nearly proportional and few
are. The policy chooses the rows that commit most tokens per second, so a session whose draft
tokens are useless costs the others nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import inf
from typing import Final

import numpy as np
from numpy.typing import NDArray

from speculation.arrivals import LATE_INTERVALS
from speculation.latency import PassLatency
from speculation.learning import running_mean
from speculation.messages import Fill

MAX_AWAITED: Final = 4
"""No pass waits with this many pending draft tokens: more would come too late to pay."""

MIN_GAIN: Final = 1.1
"""Draft tokens are judged only if they are expected to commit this many times the tokens that
the pass would commit without them in the time that they take. A run of accepted tokens makes
acceptance look better than it is. Found with `python -m bench.simulator` where a row
costs nearly a pass: sessions with 0.92 to 0.95 accepted lost 18 % without it, 2 % with it."""

MIN_EXPECTED_ACCEPTED: Final = 1.0
"""A step that is planned before the outcome of the last one leaves out the sessions that wait
for it. One that does not wait commits a token in each of the two; one that does must expect to
have this many draft tokens accepted to commit as many."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A session that could start a pass now; the times are explained in Arrivals."""

    fill: Fill
    pending: int
    acceptance: float
    due_s: float
    lag_tokens: int
    interval_s: float


def draft_wait_s(session: Waiting, latency: PassLatency, max_verify: int) -> float:
    """Return how many seconds the pass waits for drafts: 0 starts it now, inf waits for a
    draft. Ask again whenever one arrives. max_verify: the most draft tokens that a pass may
    judge."""
    if session.fill == "never":
        return 0.0 if session.pending else inf
    if session.fill == "always" or session.due_s == inf:
        return 0.0
    pays = _pays_to_wait(session, latency, max_verify)
    return left_s(session.due_s, session.interval_s) if pays else 0.0


CALIBRATION_WEIGHT: Final = 1 / 16
"""The latest pass has this weight in how far a session's expectations come true."""


@dataclass(slots=True)
class Calibration:
    """Learns how far a session's expectations come true: draft tokens that are due come late,
    or not, for instance because their chain has ended at the edge."""

    _expected: float = 1.0
    _accepted: float = 1.0
    _next: float | None = None  # what the pass after the one under way may accept
    _now: float | None = None

    @property
    def factor(self) -> float:
        """The accepted draft tokens of a pass for each one that was expected, 1 at most."""
        return min(1.0, self._accepted / self._expected)

    def expect(self, accepted: float) -> None:
        """Note what the pass that waits for the one under way was expected to accept."""
        self._next = accepted

    def passed(self, accepted: int) -> None:
        """Note that a pass has run."""
        if self._now is not None:
            self._expected = running_mean(self._expected, self._now, CALIBRATION_WEIGHT)
            self._accepted = running_mean(self._accepted, accepted, CALIBRATION_WEIGHT)
        self._now, self._next = self._next, None


def accepted_after(
    session: Waiting, gains: Sequence[float], under_way: int, pass_s: float
) -> float:
    """Return how many draft tokens of its next pass the session may expect to be accepted, if
    that pass waits for the outcome of the one under way, which ends in `pass_s` at the latest.

    gains: as for `allocate`. under_way: the number of draft tokens that are being judged. The
    target generates one more token after them, so later draft tokens alone can help.
    """
    begins = under_way + 1
    ahead = (session.pending or -session.lag_tokens) - begins
    if session.due_s <= pass_s:
        left_s = pass_s - max(0.0, session.due_s)
        ahead += (session.due_s >= 0.0) + (
            int(left_s / session.interval_s) if session.interval_s else 0
        )
    a = session.acceptance
    reached = a ** (begins + (0 if session.pending else session.lag_tokens))
    coming = reached * (expected_tokens(a, ahead) - 1.0) if ahead > 0 else 0.0
    return max(sum(gains[begins:]), coming)


def left_s(due_s: float, interval_s: float) -> float:
    """Return how long a pass goes on waiting until its draft token is no longer expected."""
    return max(0.0, due_s + LATE_INTERVALS * interval_s) if due_s < inf else 0.0


def _pays_to_wait(session: Waiting, latency: PassLatency, max_verify: int) -> bool:
    """Return True if some number of further draft tokens earns more than the time they take.

    This is an optimal stopping rule. Starting with k draft tokens instead of the n pending ones
    commits a^(n+1) + ... + a^k tokens more, and takes the wait and T(k+1) - T(n+1) longer,
    where T(r) is the latency of r rows. In that time the session would have continued at its
    `best_rate`. The draft tokens `lag_tokens`, which the text has overtaken, arrive first, and
    the later ones are useful only if all of these equal the text."""
    if (alone_s := latency.of(1)) <= 0.0:
        return False
    rate = 0.0  # not computed yet
    wait_s = max(0.0, session.due_s) + session.lag_tokens * session.interval_s
    reached = session.acceptance**session.lag_tokens
    tokens_now = expected_tokens(session.acceptance, session.pending)
    pass_now_s = latency.of(session.pending + 1, with_drafts=session.pending > 0)
    for k in range(session.pending + 1, MAX_AWAITED + 1):
        gain = reached * (expected_tokens(session.acceptance, k) - tokens_now)
        longer_s = wait_s + (latency.of(k + 1, with_drafts=True) - pass_now_s)
        if gain > longer_s / alone_s:  # otherwise the target alone would earn more
            rate = rate or best_rate(session.acceptance, latency, max_verify)
            if gain > rate * longer_s:
                return True
        wait_s += session.interval_s
    return False


def expected_tokens(acceptance: float, drafts: int) -> float:
    """Return what a pass over `drafts` draft tokens commits: 1 + a + ... + a^K."""
    return sum(acceptance**k for k in range(drafts + 1))


def best_rate(acceptance: float, latency: PassLatency, most: int) -> float:
    """Return the tokens per second of a session whose draft tokens come in time; inf if T is 0.
    most: draft tokens that a pass may judge."""
    pass_s: list[float] = latency.with_drafts(1, most).tolist()
    if pass_s[0] <= 0.0:
        return inf
    tokens, best = 0.0, 0.0
    for drafts, seconds in enumerate(pass_s):
        tokens += acceptance**drafts
        best = max(best, tokens / seconds)
    return best


def allocate(
    gains: Sequence[Sequence[float]],
    latency: PassLatency,
    *,
    rows: int,
    others: int = 0,
    judge_all: bool = False,
) -> list[int]:
    """Return how many draft tokens of each session the next pass judges.

    gains: for each session, the probability that each of its draft tokens is reached and
    accepted, which never rises from one to the next. rows: the most that the pass may have, of
    which each session needs one without any draft token, and other requests need `others`; the
    pass has fewer if that many have not been tried. The next row always goes to the session
    whose next draft token is the likeliest; the number of rows is the one with the best
    expected tokens per second. judge_all: use all rows, whatever they take, for the fewest
    passes.
    """
    least = len(gains) + others
    if not judge_all:
        rows = min(rows, latency.max_rows(least))
    gain = np.fromiter(chain.from_iterable(gains), np.float64)
    session = np.repeat(np.arange(len(gains)), [len(some) for some in gains])
    ranked = np.lexsort((session, gain))[::-1][: max(0, rows - least)]
    if not judge_all:
        ranked = ranked[: _most_earning(least, gain[ranked], latency)]
    counts: list[int] = np.bincount(session[ranked], minlength=len(gains)).tolist()
    return counts


def _most_earning(least: int, gains: NDArray[np.float64], latency: PassLatency) -> int:
    """Return how many of the draft tokens to judge beside `least` rows without any."""
    return _best(np.cumsum([least, *gains]), latency.with_drafts(least, len(gains)))


def head_tokens(
    precisions: Sequence[float], latency: PassLatency, step_s: float, most: int
) -> int:
    """Return how many tokens the heads of some sessions should draft for their next pass, 0 if
    none pay. precisions: how often each head is right; step_s: the seconds of a step, which
    drafts a token of each."""
    sessions, steps = len(precisions), np.arange(most + 1)
    tokens = (np.array(precisions)[:, None] ** steps).sum(axis=0).cumsum()
    rows_s = latency.with_drafts(sessions, sessions * most)[::sessions]
    return _best(tokens, rows_s + step_s * steps)


def _best(tokens: NDArray[np.float64], seconds: NDArray[np.float64]) -> int:
    """Return which of these choices commits most tokens a second; the first, without draft
    tokens, unless another earns MIN_GAIN times as much in the time that it adds."""
    last, least = len(tokens) - 1, tokens[0]
    if seconds[0] <= 0.0:
        return last
    rates = tokens / seconds
    best = last - int(np.argmax(rates[::-1]))  # the most rows of equal rates
    longer_s = seconds[best] - seconds[0]
    return best if tokens[best] - least >= MIN_GAIN * rates[0] * longer_s else 0
