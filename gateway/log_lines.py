"""What a log line may hold that others have written, and how often it is written.

A client chooses its path, and how often it asks. Neither may fill a disk, nor steer the
terminal in which a log is read.
"""

from __future__ import annotations

from typing import Final

MAX_CHARACTERS: Final = 200
"""The longest text of a client in a log line or a span; our own longest path has about 60."""

EVERY_S: Final = 60.0
"""The least time between two lines of one kind that anybody can cause, in seconds."""


def printable(text: str) -> str:
    """Return a text with escapes in place of what a terminal obeys or does not show."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def shown(text: str) -> str:
    """Return a client's text as a log line has it: printable, and cut."""
    cut = text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + "..."
    return printable(cut)


class LogLimit:
    """Lets one line of a kind through in EVERY_S; the line says how many it stands for."""

    def __init__(self) -> None:
        self._written_at: float | None = None
        self._count = 0

    def count(self, now: float) -> int:
        """Count an event. Return how many there were since the last line if one is due now, and
        0 otherwise. now: a monotonic clock's time, in seconds."""
        self._count += 1
        if self._written_at is not None and now - self._written_at < EVERY_S:
            return 0
        counted, self._written_at, self._count = self._count, now, 0
        return counted
