"""Decides when each token of a burst is shown, so that the text runs at the rate of generation.

A pass of the target commits several tokens at once. The first is shown when it arrives, and the
others follow in equal steps until the next burst is expected, after the running mean of the
earlier intervals. Tokens that are still held when that burst comes are shown at once. So no
token is later than the next burst, and none is held for longer than MAX_DELAY_S.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

WEIGHT: Final = 0.25
"""The latest interval has this weight in the running mean."""

MAX_DELAY_S: Final = 1.0
"""A longer interval counts as this many seconds: the burst after an outage is not held long."""

T = TypeVar("T")


class Pacer(Generic[T]):
    """Paces the items of one choice; it has no clock.

    shows: returns True if a reader sees an item. interval_s: estimate of the intervals, such as
    that of another choice; 0 means unknown, and then the first burst is shown at once.

    An item that shows nothing takes no step: it goes with the one before it. Items come out in
    the order in which they came in.
    """

    def __init__(self, shows: Callable[[T], bool], interval_s: float = 0.0) -> None:
        self.interval_s = interval_s
        """This is the running mean of the intervals between bursts."""

        self._shows = shows
        self._held: deque[T] = deque()
        self._arrived_s: float | None = None
        self._step_s = 0.0
        self._next_s = 0.0

    @property
    def due_s(self) -> float | None:
        """Return the time at which the next item is due; None while nothing is held."""
        return self._next_s if self._held else None

    def add(self, items: Sequence[T], now: float) -> list[T]:
        """Add items that arrived together, and return those that are due. If none of the items
        shows anything, they are no burst: they wait for those before them."""
        steps = sum(map(self._shows, items))
        before = self.flush() if steps else []
        self._held.extend(items)
        if steps:
            self._learn(now)
            self._step_s, self._next_s = self.interval_s / steps, now
        return before + self.due(now)

    def due(self, now: float) -> list[T]:
        """Return the items that are due by now."""
        shown: list[T] = []
        while self._held:
            step_s = self._step_s if self._shows(self._held[0]) else 0.0
            if step_s and self._next_s > now:
                break
            shown.append(self._held.popleft())
            self._next_s += step_s
        return shown

    def flush(self) -> list[T]:
        """Return all held items."""
        held = list(self._held)
        self._held.clear()
        return held

    def _learn(self, now: float) -> None:
        """Update the mean with the interval that this burst ends, unless it is the first."""
        if self._arrived_s is not None:
            interval_s = min(now - self._arrived_s, MAX_DELAY_S)
            mean_s = self.interval_s or interval_s
            self.interval_s = mean_s + WEIGHT * (interval_s - mean_s)
        self._arrived_s = now
