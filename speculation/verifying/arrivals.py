"""When a session's next draft is due, told from what the verifier said and heard; in seconds.

The edge drafts at a steady pace, until its chain breaks or it pauses, which it says. Then it
waits for a Commit, and the first draft that answers it comes a round trip and a step later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Final

from speculation.protocol.messages import Down, Draft, Pushed
from speculation.smoothing import smoothed
from speculation.verifying.session import NO_CHANCE, VerifyingSession

LATE_INTERVALS: Final = 2.0
"""A draft this many intervals overdue is not coming."""

AT_ONCE_S: Final = 0.001
"""Drafts that come so close together had waited, as those made before the session was open:
they tell no pace."""

MOST_GROWTH: Final = 4.0
"""An interval longer than so many usual ones counts as that: something held the draft up."""

COMMITS: Final = 64
"""Remembered, to tell which of them the edge learnt of a wrong chain from."""


@dataclass(slots=True)
class Arrivals:
    """What the verifier has seen of a session's drafts, and so when the next one is due."""

    first_s: float = 0.0
    """From a Commit that the edge waited for to the first draft after it: RTT + a draft.

    It waits when its chain broke, or when it paused. A rest of the edge hardly counts."""

    interval_s: float = 0.0
    """Between two draft tokens while the edge drafts; 0 if not known."""

    _commits: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=COMMITS))
    """Where the text ended after a Commit, and when that was sent."""

    _awaited: tuple[int, float] | None = None
    """Of them, the one that the next draft answers."""

    _broke: bool = False
    _paused: bool = False
    _last_at: float | None = None

    def committed(self, session: VerifyingSession, now: float) -> None:
        """A Commit was sent."""
        self._commits.append((len(session.committed), now))
        if session.chain.broken:
            self.broke(session.chain.wrong_at)
        elif self._awaited is None and (self._paused or self._late_s(now) > 0.0):
            self._awaited, self._broke = self._commits[-1], False

    def broke(self, position: int) -> None:
        """The chain was found wrong at a position. The edge drops it with the Commit that says
        so, which may have been sent a while ago."""
        saying = (commit for commit in self._commits if commit[0] > position)
        last = self._commits[-1] if self._commits else None
        self._awaited, self._broke = next(saying, last), True

    def came(self, now: float, tokens: int) -> None:
        """Draft tokens arrived, right or wrong."""
        if self._awaited is not None and now >= self._awaited[1]:
            latest_s = min(now - self._awaited[1], 2 * self.first_s or inf)
            if self._broke or not self.first_s:
                self.first_s = smoothed(self.first_s or None, latest_s)
        elif self._last_at is not None and now - self._last_at > AT_ONCE_S:
            most_s = MOST_GROWTH * self.interval_s or inf
            latest_s = min((now - self._last_at) / tokens, most_s)
            self.interval_s = smoothed(self.interval_s or None, latest_s)
        self._awaited, self._paused, self._last_at = None, False, now

    def paused(self, known: int) -> None:
        """The edge drafts no more before it knows of more than these committed tokens."""
        saying = (commit for commit in self._commits if commit[0] > known)
        self._awaited, self._broke = next(saying, None), False
        self._paused, self._last_at = True, None

    @property
    def restart_s(self) -> float:
        """How long a broken chain takes until the next one has two drafts; 0 if not known."""
        return self.first_s + self.interval_s if self.first_s else 0.0

    def due_s(self, now: float) -> float:
        """Return how soon the next draft should come, inf where none is expected."""
        return inf if self._late_s(now) > 0.0 else self._next_at - now

    def behind(self, session: VerifyingSession) -> int:
        """Return how many drafts must come before one is ahead of the text: the target went on
        while they were on their way."""
        begins = max(session.chain.reach, self._awaited[0] if self._awaited else 0)
        return max(0, len(session.committed) - begins)

    @property
    def _next_at(self) -> float:
        if self._awaited is not None:
            return self._awaited[1] + (self.first_s or inf)
        return inf if self._last_at is None else self._last_at + (self.interval_s or inf)

    def _late_s(self, now: float) -> float:
        """Return how much later it is than the next draft can still be expected."""
        return now - self._next_at - LATE_INTERVALS * self.interval_s


def receive(
    session: VerifyingSession,
    arrivals: Arrivals,
    message: Pushed,
    u: Iterator[float] = NO_CHANCE,
    *,
    arrived: float,
) -> list[Down]:
    """Have a session take in a message, and note when it came."""
    heard, broken = session.chain.heard, session.chain.broken
    down = session.receive(message, u)
    if isinstance(message, Draft) and session.chain.heard > heard:
        arrivals.came(arrived, len(message.tokens))
        if message.pauses:
            arrivals.paused(message.start - message.behind)
    if session.chain.broken and not broken:
        arrivals.broke(session.chain.wrong_at)
    return down
