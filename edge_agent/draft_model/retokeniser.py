"""Tokenises text that still grows, up to the last boundary that no continuation can move.

A boundary between two tokens is *certain* if no piece of the vocabulary can reach across it,
whatever follows: then every tokenisation of every continuation has a boundary there. What is
before it is tokenised as if nothing followed: merges (byte pair encoding) and best paths
(unigram) on one side do not depend on the other, and the expressions that cut text into words
look at most one character ahead, which is known at such a boundary.

For the same reason text can be tokenised from any boundary on, without what is before it.
"""

from __future__ import annotations

import codecs
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Final

import numpy as np

from models.vocabulary import Vocabulary
from speculation.sampling.noise import Tokens

Tokenize = Callable[[str], list[int]]
"""Tokenize(text) returns the tokens of a text, without BOS; a marker in it stays text."""

_LEAD: Final = "\n"
"""What is put before a text for a tokenizer that begins every text with a space."""

_BROKEN: Final = re.compile("([\udc80-\udcff]+)")
"""Bytes that are no UTF-8, as Python decodes them with `surrogateescape`."""


class Retokeniser:
    """The text tokens of one vocabulary; special tokens have no part in it."""

    def __init__(self, vocabulary: Vocabulary, tokenize: Tokenize) -> None:
        self.vocabulary = vocabulary
        self._tokenize = tokenize
        self._ids = _ids(vocabulary)
        self._sorted = sorted(self._ids)
        self._order = np.array([self._ids[piece] for piece in self._sorted])
        self._longest = max(map(len, self._sorted))
        self._lead = [] if self.bytes_of(tokenize("a")) == b"a" else tokenize(_LEAD)

    def bytes_of(self, tokens: Iterable[int]) -> bytes:
        """Return what the tokens spell."""
        pieces = self.vocabulary.pieces
        return b"".join([pieces[token] for token in tokens])

    def ends(self, tokens: Iterable[int], start: int = 0) -> list[int]:
        """Return where each of the tokens ends, in bytes, if the first begins at `start`."""
        sizes = (len(self.vocabulary.pieces[token]) for token in tokens)
        return list(accumulate(sizes, initial=start))[1:]

    def prefix(self, text: bytes) -> int | None:
        """Return the token with the longest piece that begins the text, if there is one."""
        sizes = range(min(len(text), self._longest), 0, -1)
        return next((self._ids[text[:n]] for n in sizes if text[:n] in self._ids), None)

    def compatible(self, text: bytes) -> Tokens:
        """Return the tokens that the text begins with, and those that begin with the text."""
        first = bisect_left(self._sorted, text)
        last = bisect_right(self._sorted, text + b"\xff" * self._longest)
        shorter = [self._ids[text[:n]] for n in range(1, len(text)) if text[:n] in self._ids]
        return np.concatenate([self._order[first:last], np.array(shorter, np.int64)])

    def tokenise(self, text: bytes) -> list[int]:
        """Return the tokens of text that may begin or end within a character.

        What is no UTF-8 is cut into the longest pieces there are; a byte without one is lost.
        """
        tokens = list[int]()
        for n, part in enumerate(_BROKEN.split(text.decode("utf-8", "surrogateescape"))):
            tokens += self._cut(_encoded(part)) if n % 2 else self._whole(part)
        return tokens

    def stable(self, text: bytes) -> list[int]:
        """Return the tokens before the last certain boundary of text that may go on."""
        known = _encoded(codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(text))
        tokens = self.tokenise(known)
        ends = self.ends(tokens)
        for count in range(len(tokens) - 1, 0, -1):
            if self._is_certain(known, ends[count - 1]):
                spelled = self.bytes_of(tokens[:count]) == known[: ends[count - 1]]
                return tokens[:count] if spelled else []
        return []

    def _is_certain(self, text: bytes, end: int) -> bool:
        """Return whether no piece can reach across `end`, which lies within the text."""
        if text[end] & 0xC0 == 0x80:  # within a character
            return False
        first = max(0, end + 1 - self._longest)
        return not any(self._begins_one(text[at : end + 1]) for at in range(end - 1, first - 1, -1))

    def _begins_one(self, text: bytes) -> bool:
        at = bisect_left(self._sorted, text)
        return at < len(self._sorted) and self._sorted[at].startswith(text)

    def _whole(self, text: str) -> list[int]:
        if not text or not self._lead:
            return self._tokenize(text) if text else []
        return self._tokenize(_LEAD + text)[len(self._lead) :]

    def _cut(self, text: bytes) -> Iterator[int]:
        while text:
            token = self.prefix(text)
            if token is not None:
                yield token
            text = text[1 if token is None else len(self.vocabulary.pieces[token]) :]


def _ids(vocabulary: Vocabulary) -> dict[bytes, int]:
    ids = dict[bytes, int]()
    for token, piece in enumerate(vocabulary.pieces):
        if piece and not vocabulary.is_special(token):
            ids.setdefault(piece, token)
    return ids


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
