"""Finds where a value ends in text that comes piece by piece, by its brackets and strings."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from gateway.output.reading import Incoming, Malformed, Steps


@dataclass(frozen=True, slots=True)
class Notation:
    """Defines the brackets and strings of a language."""

    closers: Mapping[str, str]
    """Maps each bracket and quotation mark to the character that closes it."""

    plain: re.Pattern[str]
    """Matches a run of characters that may be between brackets and strings."""


JSON: Final = Notation({"{": "}", "[": "]", '"': '"'}, re.compile(r"[\s\w,:.+-]*"))
PYTHON: Final = Notation(
    {"(": ")", "{": "}", "[": "]", '"': '"', "'": "'"}, re.compile(r"[^\[\](){}\"']*")
)
_SCALAR: Final = re.compile(r"[\w.+-]*")
_QUOTED: Final = {'"': re.compile(r'[^"\\]*'), "'": re.compile(r"[^'\\]*")}


class Extent:
    """Finds the end of a value that begins with a bracket or a quotation mark."""

    def __init__(self, notation: Notation) -> None:
        self._notation = notation
        self._closers: list[str] = []
        """These characters close the open brackets and strings, the innermost last."""

        self.ended = False
        self.broken = False
        """True if the value ended at a character that cannot be part of it."""

    def scan(self, text: str, at: int) -> int:
        """Return the index up to which `text`, from `at` on, belongs to the value.

        An escape in a string is left unread until both its characters have come.
        """
        while at < len(text) and not self.ended:
            closer = self._closers[-1] if self._closers else ""
            quoted = closer in _QUOTED
            plain = (_QUOTED[closer] if quoted else self._notation.plain).match(text, at)
            at = plain.end() if plain else at
            if quoted and text.startswith("\\", at):
                if at + 1 == len(text):
                    break
                at += 2
            elif at < len(text):
                self._nest(text[at], closer, quoted)
                at += not self.broken
        return at

    def _nest(self, char: str, closer: str, quoted: bool) -> None:
        if char == closer:
            self._closers.pop()
        elif not quoted and char in self._notation.closers:
            self._closers.append(self._notation.closers[char])
        else:
            self.broken = True
        self.ended = self.broken or not self._closers


def read_value(text: Incoming, notation: Notation = JSON) -> Steps[str]:
    """Read a value, which may be a number or a word, and return its text."""
    start = text.at
    if (yield from text.peek()) not in notation.closers:
        return (yield from text.match(_SCALAR))
    extent = Extent(notation)
    while True:
        text.at = extent.scan(text.held, text.at)
        if extent.ended and not extent.broken:
            return text.held[start : text.at]
        if extent.broken or text.ended:
            raise Malformed("the value does not end")
        yield


def stream_value(text: Incoming, emit: Callable[[str], None]) -> Steps[None]:
    """Pass a JSON object on as it comes. Raises Malformed after passing on all that may belong
    to the object."""
    extent = Extent(JSON)
    while True:
        text.at = extent.scan(text.held, text.at)
        if text.ended and not extent.ended:
            text.at = len(text.held)
        emit(text.consume())
        if extent.ended or text.ended:
            break
        yield
    if extent.broken or not extent.ended:
        raise Malformed("the value does not end")
