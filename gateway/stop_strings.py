"""Cuts a growing text before its first stop string; the result is the same for any split.

* Of several stop strings, the one that is complete first counts (the longest, if two are
  complete at the same character).
* Text that may turn out to be the beginning of a stop string is withheld until that is decided.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Finds the first of `stops` in text that is fed piece by piece."""

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._stops = tuple(stops)
        self._withheld = ""
        self.hit = False
        """A stop string was found, and the text has ended."""

    def feed(self, text: str) -> str:
        """Take more text, and return what may be shown now."""
        if self.hit:
            return ""
        text = self._withheld + text
        if found := self._find(text):
            self.hit, self._withheld = True, ""
            return text[: min(found)[1]]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._withheld = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """Return what was withheld: the text has ended, so it begins no stop string."""
        withheld, self._withheld = self._withheld, ""
        return withheld

    def _find(self, text: str) -> list[tuple[int, int]]:
        """Return (end, start) of the first occurrence of each stop string in `text`."""
        starts = [(stop, text.find(stop)) for stop in self._stops]
        return [(start + len(stop), start) for stop, start in starts if start >= 0]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that is a proper beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
