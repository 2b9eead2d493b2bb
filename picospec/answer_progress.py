"""Describes a running answer in one line: tokens per second, acceptance, round trip.

The numbers come with the answer's own stream, so other clients do not affect them. A service
that does not report speculation has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from picospec.chat_client import Chunk

ENOUGH_TOKENS: Final = 64
"""A race over fewer tokens says little."""

NOTEWORTHY: Final = 1.05
"""An answer counts as faster from this ratio on; below it, as equally fast."""


@dataclass(frozen=True, slots=True)
class Race:
    """The time that answers took, and that the target alone needs for as many tokens."""

    taken_s: float = 0.0
    alone_s: float = 0.0
    tokens: int = 0

    def __add__(self, other: Race) -> Race:
        taken_s, alone_s = self.taken_s + other.taken_s, self.alone_s + other.alone_s
        return Race(taken_s, alone_s, self.tokens + other.tokens)

    def __str__(self) -> str:
        """Return a sentence, or an empty text if too little is known."""
        if self.tokens < ENOUGH_TOKENS or not self.taken_s or not self.alone_s:
            return ""
        ratio = self.alone_s / self.taken_s
        if ratio < NOTEWORTHY:
            return "About as fast as the large model alone, in its own words."
        return f"{ratio:.1f} times as fast as the large model alone, in its own words."


class AnswerProgress:
    """Counts one answer. clock: monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first_s: float | None = None
        self._last_s = 0.0
        self._tokens = self._accepted = self._judged = 0
        self._rtt_ms = 0.0
        self._row_ms: float | None = None

    def add(self, chunk: Chunk) -> None:
        """Take in the data of a chunk."""
        event = chunk.speculation
        if event is None:
            return
        match event.event:
            case "":
                self._count(sum(event.counts.values()))
            case "pass":
                self._accepted += event.accepted
                self._judged += event.rows - 1
            case "totals":
                self._accepted, self._judged = event.accepted, event.drafted
        self._rtt_ms = event.rtt_ms or self._rtt_ms
        self._row_ms = event.cloud_row_ms or self._row_ms

    def _count(self, tokens: int) -> None:
        """Count tokens after the first ones, whose time is that of the prompt."""
        self._last_s = self._clock()
        if self._first_s is None:
            self._first_s = self._last_s
        else:
            self._tokens += tokens

    @property
    def race(self) -> Race:
        """The time after the first tokens; empty if the target's time is not known."""
        if self._row_ms is None or self._first_s is None:
            return Race()
        taken_s = self._last_s - self._first_s
        return Race(taken_s, self._tokens * self._row_ms / 1000, self._tokens)

    def __str__(self) -> str:
        seconds = self._last_s - (self._first_s or 0.0)
        parts = (
            f"{self._tokens / seconds:.1f} tokens/s" if self._tokens and seconds > 0 else "",
            f"{self._accepted / self._judged:0.0%} of drafts accepted" if self._judged else "",
            f"RTT {self._rtt_ms:.0f} ms" if self._rtt_ms else "",
        )
        return " · ".join(filter(None, parts))
