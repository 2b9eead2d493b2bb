"""Bytes to characters, and characters to what may be shown: both one step at a time.

However the bytes are split, the shown text is the same, because the rules speak of characters:
* half a character is never shown; bytes that can become none give U+FFFD;
* the stop string that is complete first ends the text before itself (the longest one, if two
  are complete at the same character);
* text that may yet turn out to be the beginning of a stop string is held back.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Decoder:
    """Incremental UTF-8."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, piece: bytes) -> str:
        return self._decoder.decode(piece)

    def finish(self) -> str:
        """Return the replacement for a character that was never completed, or nothing."""
        return self._decoder.decode(b"", final=True)


class StopStrings:
    """Cuts a growing text before the first stop string in it."""

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._stops = tuple(stops)
        self._held = ""
        self.hit = False
        """A stop string was found: the text has ended."""

    def feed(self, text: str) -> str:
        """Take more text; return what may be shown now."""
        if self.hit:
            return ""
        text = self._held + text
        cut = self._cut(text)
        if cut is not None:
            self.hit, self._held = True, ""
            return text[:cut]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """Return what was held back: it began no stop string after all."""
        held, self._held = self._held, ""
        return held

    def _cut(self, text: str) -> int | None:
        found = [(start + len(stop), start) for stop, start in self._find(text)]
        return min(found)[1] if found else None

    def _find(self, text: str) -> list[tuple[str, int]]:
        places = [(stop, text.find(stop)) for stop in self._stops]
        return [(stop, start) for stop, start in places if start >= 0]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` without completing it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
