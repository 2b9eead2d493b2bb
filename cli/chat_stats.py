"""Describes a running answer in one line: tokens a second, acceptance, round trip.

The numbers come with the answer's own stream, so what other clients do is not in them. A
service that does not tell of speculation has none.
"""

from __future__ import annotations

from collections.abc import Callable

from picospec.cli.chat_client import Chunk


class Progress:
    """clock: monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first_s: float | None = None
        self._last_s = 0.0
        self._tokens = self._accepted = self._judged = 0
        self._rtt_ms = 0.0

    def add(self, chunk: Chunk) -> None:
        """Take in what a chunk tells."""
        told = chunk.speculation
        if told is None:
            return
        match told.event:
            case "":
                self._count(sum(told.counts.values()))
            case "pass":
                self._accepted += told.accepted
                self._judged += told.rows - 1
            case "totals":
                self._accepted, self._judged = told.accepted, told.drafted
        self._rtt_ms = told.rtt_ms or self._rtt_ms

    def _count(self, tokens: int) -> None:
        """Count tokens from the first ones on, whose time is that of the prompt."""
        self._last_s = self._clock()
        if self._first_s is None:
            self._first_s = self._last_s
        else:
            self._tokens += tokens

    def __str__(self) -> str:
        seconds = self._last_s - (self._first_s or 0.0)
        parts = (
            f"{self._tokens / seconds:.1f} tokens/s" if self._tokens and seconds > 0 else "",
            f"{self._accepted / self._judged:.0%} of drafts accepted" if self._judged else "",
            f"RTT {self._rtt_ms:.0f} ms" if self._rtt_ms else "",
        )
        return " · ".join(filter(None, parts))
