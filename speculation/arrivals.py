"""Learns when draft tokens are due, and how many must arrive before one is ahead of the text.

The edge drafts at a steady rate until its chain breaks or it announces a pause. Then it waits
for a Commit, and the first draft token that answers it arrives a round trip and a draft step
later. All times are in seconds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import inf
from typing import Final

from speculation.learning import running_mean

LATE_INTERVALS: Final = 2.0
"""A draft token that is overdue by this many intervals is no longer expected."""

MIN_INTERVAL_S: Final = 0.001
"""Draft tokens that arrive closer together had waited, for instance until the session was open;
their interval says nothing about the edge's rate."""

MAX_GROWTH: Final = 4.0
"""An interval counts as at most this many usual ones: a longer one means that something delayed
the draft."""

MAX_COMMITS: Final = 64
"""This many Commits are kept, to find the one that showed the edge that its chain was wrong."""

Sent = tuple[int, float]
"""The length of the text after a Commit, and the time at which the Commit was sent."""


@dataclass(slots=True)
class Arrivals:
    """The verifier's observations of when one session's draft tokens arrive."""

    first_s: float = 0.0
    """The time from a Commit that the edge waited for to its first draft token after it, a
    round trip and a draft step; 0 if unknown. Later values are learned where a chain broke, not
    where the edge paused, and a wait counts as at most twice the usual one."""

    interval_s: float = 0.0
    """The time between two draft tokens while the edge drafts; 0 if unknown."""

    _commits: deque[Sent] = field(default_factory=lambda: deque(maxlen=MAX_COMMITS))
    _awaited: Sent | None = None  # the one that the next draft token answers
    _is_after_break: bool = False
    _is_paused: bool = False
    _last_at: float | None = None

    def committed(self, length: int, now: float, wrong_at: int | None = None) -> None:
        """Note that a Commit was sent. length: the text's after it. wrong_at: see
        `chain_broke`; None if the chain goes on."""
        self._commits.append((length, now))
        if wrong_at is not None:
            self.chain_broke(wrong_at)
        elif self._awaited is None and (self._is_paused or self._late_s(now) > 0.0):
            self._awaited, self._is_after_break = self._commits[-1], False

    def chain_broke(self, position: int) -> None:
        """Note that the chain was found wrong at a position. The edge drops it with the Commit
        that contains this position, which may have been sent a while ago."""
        containing = (commit for commit in self._commits if commit[0] > position)
        last = self._commits[-1] if self._commits else None
        self._awaited, self._is_after_break = next(containing, last), True

    def drafts_arrived(self, now: float, tokens: int) -> None:
        """Note that draft tokens arrived, right or wrong."""
        if self._awaited is not None and now >= self._awaited[1]:
            latest_s = min(now - self._awaited[1], 2 * self.first_s or inf)
            if self._is_after_break or not self.first_s:
                self.first_s = running_mean(self.first_s or None, latest_s)
        elif self._last_at is not None and now - self._last_at > MIN_INTERVAL_S:
            max_s = MAX_GROWTH * self.interval_s or inf
            latest_s = min((now - self._last_at) / tokens, max_s)
            self.interval_s = running_mean(self.interval_s or None, latest_s)
        self._awaited, self._is_paused, self._last_at = None, False, now

    def paused(self, known: int) -> None:
        """Note that the edge stops drafting until it knows of more than `known` tokens."""
        later = (commit for commit in self._commits if commit[0] > known)
        self._awaited, self._is_after_break = next(later, None), False
        self._is_paused, self._last_at = True, None

    def due_s(self, now: float) -> float:
        """Return how soon the next draft token should arrive; inf if none is expected."""
        return inf if self._late_s(now) > 0.0 else self._next_at - now

    def lag_tokens(self, length: int, reach: int) -> int:
        """Return how many draft tokens must arrive before one is ahead of the text. length: the
        text's. reach: where the chain ends."""
        begins = max(reach, self._awaited[0] if self._awaited else 0)
        return max(0, length - begins)

    @property
    def _next_at(self) -> float:
        if self._awaited is not None:
            return self._awaited[1] + (self.first_s or inf)
        return inf if self._last_at is None else self._last_at + (self.interval_s or inf)

    def _late_s(self, now: float) -> float:
        """Return how long the next draft token is overdue beyond LATE_INTERVALS."""
        return now - self._next_at - LATE_INTERVALS * self.interval_s
