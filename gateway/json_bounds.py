"""Bounds how many values a JSON text has, before Python objects are made of them.

A Python object takes far more memory and time than the byte of JSON that asks for it: one
megabyte may have half a million arrays. This module only searches bytes, and parses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import add
from typing import Final, NamedTuple

from gateway.errors import InvalidRequest

MAX_CONTAINERS: Final = 32_768
"""A body has at most this many objects and arrays: 4,096 messages with a part and a tool call
each have 25,000."""

MAX_STRINGS: Final = 98_304
"""A body has at most this many strings, including the names of fields: such messages have
70,000."""

MAX_VALUES: Final = 1 << 19
"""A body has at most this many values, not counting the first of each object and array: two
prompts of 262,144 token ids reach the limit."""

SMALL_BYTES: Final = 64 * 1024
"""Up to this size a text is parsed within milliseconds, whatever it holds, and its values are
not counted. It may be a prompt of 10,000 tokens."""

PIECE_BYTES: Final = 1 << 18
"""This many bytes are counted at once, in a few milliseconds in which no other thread runs."""


class Structure(NamedTuple):
    containers: int = 0
    strings: int = 0
    commas: int = 0


class Values:
    """Counts the values of all JSON texts that are parsed for one request, together: the body,
    a text within it, and what is kept of a conversation."""

    def __init__(self) -> None:
        self._bytes = 0
        self._counted = Structure()

    def add(self, text: bytes) -> None:
        """Count a text. Raises InvalidRequest for more values than any client sends."""
        self._bytes += len(text)
        if self._bytes <= SMALL_BYTES:
            return
        before = self._counted
        for counted in count_structure(text):
            self._counted = total = Structure(*map(add, before, counted))
            _check("objects and arrays", total.containers, MAX_CONTAINERS)
            _check("strings", total.strings, MAX_STRINGS)
            _check("values", total.commas, MAX_VALUES)


def check_structure(text: bytes) -> None:
    """Raise InvalidRequest for a JSON text with more values than any client sends."""
    Values().add(text)


def count_structure(text: bytes, piece_bytes: int = PIECE_BYTES) -> Iterator[Structure]:
    """Yield the counts of a JSON text up to the end of each piece. If the text is not JSON, the
    counts are meaningless."""
    containers = quotes = commas = 0
    escape, inside = b"", False
    for start in range(0, len(text), piece_bytes):
        piece = escape + text[start : start + piece_bytes]
        backslashes = len(piece) - len(piece.rstrip(b"\\"))
        escape = b"\\" * (backslashes % 2)  # it escapes the first byte of the next piece
        piece = piece.removesuffix(escape)
        parts = piece.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"".join(parts[inside::2])
        containers += outside.count(b"{") + outside.count(b"[")
        commas += outside.count(b",")
        quotes += len(parts) - 1
        inside = quotes % 2 == 1
        yield Structure(containers, quotes // 2, commas)


def _check(what: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidRequest(f"the body has more than {most} {what}", code="too_many_values")
