"""Counts and times what one session commits, as gateway.account does for one request.

A session outlives the request that opened it, when its edge resumes it by another one.
"""

from __future__ import annotations

from gateway.metrics import Metrics


class SessionAccount:
    """opened: when the session was asked for, in seconds of the clock of all calls."""

    def __init__(self, metrics: Metrics, opened: float) -> None:
        self._metrics = metrics
        self._opened = opened
        self._last: float | None = None  # when tokens were committed last

    def committed(self, tokens: int, now: float) -> None:
        """Count a Commit. The gap before it is observed once, as a mean of its tokens."""
        self._metrics.generation_tokens.inc(tokens)
        if self._last is None:
            self._metrics.first_token_s.observe(now - self._opened)
        else:
            self._metrics.token_gap_s.observe((now - self._last) / tokens)
        self._last = now

    def finished(self, now: float) -> None:
        """The answer is complete."""
        self._metrics.request_s.observe(now - self._opened)
