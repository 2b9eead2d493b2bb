"""Simulates time: ordered events, and messages on a link."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from itertools import count

from bench.link import Path as LinkPath
from speculation.messages import Message
from speculation.wire import encode

Action = Callable[[], None]

Deliver = Callable[..., None]
"""Delivers a message of one direction, an Up or a Down."""


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


class Line:
    """Delivers a connection's messages in one direction, in order, when the path lets them."""

    def __init__(self, clock: Clock, path: LinkPath, deliver: Deliver) -> None:
        self._clock = clock
        self._path = path
        self._deliver = deliver
        self._last_s = 0.0

    def send(self, message: Message) -> None:
        arrival_s = self._path.arrival(self._clock.now_s, len(encode(message)))
        self._last_s = max(self._last_s, arrival_s)
        self._clock.at(self._last_s, partial(self._deliver, message))
