"""A client's text is escaped and cut for a log line, and the log lines that clients cause are
limited.

A client chooses its path and its rate of requests. Neither may fill a disk, or control the
terminal in which a log is read.
"""

from __future__ import annotations

from typing import Final

MAX_CHARACTERS: Final = 200
"""A log line or span has at most this much of a client's text; our longest path has 60."""

EVERY_S: Final = 60.0
"""Any client can cause one log line of each kind in this many seconds, and not more."""


def printable(text: str) -> str:
    """Return a text in which control and other unprintable characters are escaped."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def shown(text: str) -> str:
    """Return a client's text in the form for a log line: printable, and cut."""
    cut = text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + "..."
    return printable(cut)


class LogLimit:
    """Allows one line of a kind in EVERY_S seconds, which reports the number of events."""

    def __init__(self) -> None:
        self._written_at: float | None = None
        self._count = 0

    def count(self, now: float) -> int:
        """Count an event. Return the number of events since the last line if a line is due now,
        and 0 otherwise. now: time of a monotonic clock, in seconds."""
        self._count += 1
        if self._written_at is not None and now - self._written_at < EVERY_S:
            return 0
        counted, self._written_at, self._count = self._count, now, 0
        return counted
