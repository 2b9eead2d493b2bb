"""Says when each token of a burst is shown, so that the text runs at the rate it is made.

A pass of the target commits several tokens at once. The first is shown when it arrives, and the
others follow in equal steps over the time until the next burst is likely to come: the running
mean of the intervals before. What is still held when that burst comes is shown at once. So no
token is later than the next burst, and none is held for longer than LONGEST_S.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

WEIGHT: Final = 0.25
"""The latest interval has this weight in the running mean."""

LONGEST_S: Final = 1.0
"""An interval counts as this at most, in seconds: after an outage the next burst is not held
long."""

T = TypeVar("T")


class Pacer(Generic[T]):
    """Paces the items of one choice; it has no clock.

    shows: whether a reader sees an item. interval_s: what is known of the intervals before the
    first, such as those of another choice; 0 where nothing is, and then the first burst is
    shown at once.

    An item that shows nothing takes no step: it goes with the one before it. Items come out in
    the order in which they came in.
    """

    def __init__(self, shows: Callable[[T], bool], interval_s: float = 0.0) -> None:
        self.interval_s = interval_s
        """It is the running mean of the intervals between bursts."""

        self._shows = shows
        self._held: deque[T] = deque()
        self._arrived_s: float | None = None
        self._step_s = 0.0
        self._next_s = 0.0

    @property
    def due_s(self) -> float | None:
        """When the next item is due; None while nothing is held."""
        return self._next_s if self._held else None

    def add(self, items: Sequence[T], now: float) -> list[T]:
        """Take in what has arrived together, and return what is due. Items of which none shows
        anything are no burst: they wait for those before them."""
        steps = sum(map(self._shows, items))
        before = self.flush() if steps else []
        self._held.extend(items)
        if steps:
            self._learn(now)
            self._step_s, self._next_s = self.interval_s / steps, now
        return before + self.due(now)

    def due(self, now: float) -> list[T]:
        """Return what is to be shown by now."""
        shown: list[T] = []
        while self._held:
            step_s = self._step_s if self._shows(self._held[0]) else 0.0
            if step_s and self._next_s > now:
                break
            shown.append(self._held.popleft())
            self._next_s += step_s
        return shown

    def flush(self) -> list[T]:
        """Return all that is held."""
        held = list(self._held)
        self._held.clear()
        return held

    def _learn(self, now: float) -> None:
        """Learn from the interval that this burst ends, if it is not the first."""
        if self._arrived_s is not None:
            interval_s = min(now - self._arrived_s, LONGEST_S)
            mean_s = self.interval_s or interval_s
            self.interval_s = mean_s + WEIGHT * (interval_s - mean_s)
        self._arrived_s = now
