"""Wakes a sleeping core when the first held session has waited long enough."""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import inf


class Timer:
    """Calls a function once, at the earliest of the times asked for. One thread sets it."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._timer: threading.Timer | None = None
        self._at = inf

    def set(self, deadline: float, now: float) -> None:
        """Call at `deadline`, unless an earlier call is due; infinity asks for none."""
        if deadline >= self._at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._at = deadline
        self._timer = threading.Timer(max(0.0, deadline - now), self._due)
        self._timer.daemon = True
        self._timer.start()

    def _due(self) -> None:
        """Run in the timer's thread: first let `set` start the next timer, then call."""
        self._at = inf
        self._function()
