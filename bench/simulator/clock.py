"""Simulates time: ordered events, durations as curves, and messages on a link."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from heapq import heappop, heappush
from itertools import count

import numpy as np

from picospec.bench.link.path import Path
from picospec.speculation.messages import Down, Message, Up
from picospec.speculation.wire import encode

Action = Callable[[], None]


class Clock:
    """Runs actions in the order of their times, and of the calls for equal times."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Action]] = []
        self._number = count()

    def at(self, when_s: float, action: Action) -> None:
        heappush(self._events, (when_s, next(self._number), action))

    def after(self, delay_s: float, action: Action) -> None:
        self.at(self.now_s + delay_s, action)

    def run(self) -> None:
        """Run all events until none is left."""
        while self._events:
            self.now_s, _, action = heappop(self._events)
            action()


class Curve:
    """A Curve maps rows to seconds: linear between the points and beyond the last; constant if
    there is only one point."""

    def __init__(
        self, seconds: Mapping[int, float], besides: Callable[[int], float] = lambda rows: 0.0
    ) -> None:
        """Set up the curve. besides: a function of rows that returns seconds to add."""
        self._rows = sorted(seconds)
        self._seconds = [seconds[rows] for rows in self._rows]
        self._besides = besides
        self._known: dict[int, float] = {}

    def plus(self, besides: Callable[[int], float]) -> Curve:
        """Return this curve plus `besides`, a function of rows."""
        return Curve(dict(zip(self._rows, self._seconds, strict=True)), besides)

    def of(self, rows: int) -> float:
        if rows not in self._known:
            self._known[rows] = self._read(rows) + self._besides(rows)
        return self._known[rows]

    def _read(self, rows: int) -> float:
        beyond = rows - self._rows[-1]
        if beyond > 0 and len(self._rows) > 1:
            slope = (self._seconds[-1] - self._seconds[-2]) / (self._rows[-1] - self._rows[-2])
            return self._seconds[-1] + beyond * slope
        return float(np.interp(rows, self._rows, self._seconds))


class Line:
    """Delivers a connection's messages in one direction, in order, when the path lets them."""

    def __init__(
        self, clock: Clock, path: Path, deliver: Callable[[Up], None] | Callable[[Down], None]
    ) -> None:
        self._clock = clock
        self._path = path
        self._deliver: Callable[..., None] = deliver
        self._last_s = 0.0

    def send(self, message: Message) -> None:
        arrival_s = self._path.arrival(self._clock.now_s, len(encode(message)))
        self._last_s = max(self._last_s, arrival_s)
        self._clock.at(self._last_s, partial(self._deliver, message))
