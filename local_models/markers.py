"""Finds the spellings of special tokens in a text."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from os.path import commonprefix
from typing import Final

CHUNK: Final = 1 << 16
"""A search for markers covers this many characters: no other thread runs meanwhile."""


class Markers:
    """Finds markers in a text: at each place the longest, as tokenizers do.

    Its regular expression branches at each character, so that a place is looked at once for all
    markers: a model may have a thousand that begin alike.
    """

    def __init__(self, markers: Collection[str]) -> None:
        self._longest = max(map(len, markers), default=0)
        self._pattern = re.compile(_branching(sorted(markers)) or "(?!)")

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """Yield the pieces of a text: whether each is a marker; no other is empty."""
        done = at = 0
        while at < len(text):
            window_end = at + CHUNK
            match = self._pattern.search(text, at, window_end + self._longest)
            if match is None or match.start() >= window_end:  # it may be cut off there
                at = window_end
                continue
            if match.start() > done:
                yield text[done : match.start()], False
            yield match[0], True
            done = at = match.end()
        if done < len(text):
            yield text[done:], False


def _branching(texts: Sequence[str]) -> str:
    """Return a pattern of these sorted texts, all different, that prefers the longest."""
    ends = "?" if texts and not texts[0] else ""
    branches = [
        re.escape(prefix) + _branching([each[len(prefix) :] for each in alike])
        for alike in (list(group) for _, group in groupby(filter(None, texts), itemgetter(0)))
        if (prefix := commonprefix(alike))  # noqa: RUF071  of characters
    ]
    return f"(?:{'|'.join(branches)}){ends}" if branches else ""
