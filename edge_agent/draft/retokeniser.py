"""Tokenises text that still grows, up to the last boundary that no continuation can move.

A boundary between two tokens is *certain* if no piece of the vocabulary can reach across it,
whatever follows: then every tokenisation of every continuation has a boundary there. The text
before it is tokenised as if nothing followed: merges (byte pair encoding) and best paths
(unigram) on one side do not depend on the other, and the expressions that cut text into words
look at most one character ahead, which is known at such a boundary.

For the same reason text can be tokenised from any boundary on, if a few tokens before it are
known: in `--,the` a word begins with `the`, and in `,the` it may begin with the comma.
"""

from __future__ import annotations

import codecs
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final

import numpy as np

from local_models.vocabulary import Vocabulary
from speculation.noise import Tokens

Tokenize = Callable[[str], list[int]]
"""Tokenize(text) returns the tokens of `text`; a special token's marker in it stays text."""

_LEAD: Final = "\n"
"""This is put before text for a tokenizer that begins every text with a space."""

_NO_SPACE: Final = "§".encode()
"""A character that is no space, and that tokenizers do not merge with the text before it."""

PRECEDING_TOKENS: Final = 8
"""This many tokens before a text are enough to know where its first word begins. A character
may take four."""

_BROKEN: Final = re.compile("([\udc80-\udcff]+)")
"""Matches bytes that are not UTF-8, as Python decodes them with `surrogateescape`."""


class Retokeniser:
    """Cuts text into the text tokens of one vocabulary; special tokens have no part in it. Any
    thread may use it."""

    def __init__(self, vocabulary: Vocabulary, tokenize: Tokenize) -> None:
        self.vocabulary = vocabulary
        self._tokenize = tokenize
        self._ids = dict[bytes, int]()
        for token, piece in enumerate(vocabulary.pieces):
            if piece and token not in vocabulary.special:
                self._ids.setdefault(piece, token)
        self._pieces = sorted(self._ids)
        self._by_piece = np.array([self._ids[piece] for piece in self._pieces], np.int64)
        self._longest = max(map(len, self._pieces))
        leads = self.bytes_of(tokenize("a")) != b"a"
        self._lead_bytes = len(self.bytes_of(tokenize(_LEAD))) if leads else 0

    def bytes_of(self, tokens: Iterable[int]) -> bytes:
        """Return the bytes that the tokens spell, special tokens included."""
        piece = self.vocabulary.piece
        return b"".join([piece(token, special=True) for token in tokens])

    def ends_of(self, tokens: Iterable[int], start: int = 0) -> list[int]:
        """Return the end of each token in bytes, if the first one begins at `start`."""
        sizes = (len(self.vocabulary.pieces[token]) for token in tokens)
        return list(accumulate(sizes, initial=start))[1:]

    def longest_prefix(self, text: bytes) -> int | None:
        """Return the token with the longest piece that begins the text, if there is one."""
        sizes = range(min(len(text), self._longest), 0, -1)
        return next((self._ids[text[:n]] for n in sizes if text[:n] in self._ids), None)

    def compatible(self, text: bytes) -> Tokens:
        """Return the tokens that can begin a text that starts with `text`: int64[n].

        These are the tokens that begin with all of `text`, and the tokenizer's first token of
        it, whether a space follows or another character.
        """
        first = bisect_left(self._pieces, text)
        last = bisect_left(self._pieces, text + b"\xff" * self._longest)
        begins = {*self.tokenise(text)[:1], *self.tokenise(text + _NO_SPACE)[:1]}
        shorter = [t for t in begins if len(self.vocabulary.pieces[t]) < len(text)]
        return np.append(self._by_piece[first:last], np.array(shorter, np.int64))

    def tokenise(self, text: bytes, preceding: Sequence[int] = ()) -> list[int]:
        """Return the tokens of text that may begin or end within a character.

        preceding: the last tokens before the text. Bytes that are not UTF-8 are cut into the
        longest pieces of the vocabulary; a byte without a piece is lost.
        """
        before = self._whole_characters(preceding)
        while before:
            tokens = self._tokens(self.bytes_of(before) + text)
            if tokens[: len(before)] == before:
                return tokens[len(before) :]
            before = self._whole_characters(before[1:])  # the first one was inside a word
        return self._tokens(text)

    def stable(self, text: bytes, preceding: Sequence[int] = ()) -> list[int]:
        """Return the tokens of `text` up to its last certain boundary. The text may go on."""
        known = _encoded(codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(text))
        tokens = self.tokenise(known, preceding)
        ends = self.ends_of(tokens)
        if self.bytes_of(tokens) != known:  # some of the text has no tokens
            return []
        for count in range(len(tokens) - 1, 0, -1):
            if self._is_certain(known, ends[count - 1]):
                return tokens[:count]
        return []

    def can_continue(self, preceding: Sequence[int], text: bytes) -> bool:
        """Return True if text can follow these tokens: the tokenizer merges none of it into
        them."""
        before = self._whole_characters(preceding)
        decoded, count = self.bytes_of(before), len(before)
        return self._tokens(decoded + text)[:count] == before or self._tokens(decoded) != before

    def _whole_characters(self, preceding: Sequence[int]) -> list[int]:
        """Return the last tokens after any special token, starting with the first one that
        begins at a character's first byte."""
        tokens = list[int]()
        for token in preceding[-PRECEDING_TOKENS:]:
            piece = self.vocabulary.piece(token)
            if not piece:
                tokens.clear()
            elif tokens or piece[0] & 0xC0 != 0x80:
                tokens.append(token)
        return tokens

    def _is_certain(self, text: bytes, end: int) -> bool:
        """Return True if no piece can reach across `end`, which is within the text."""
        first = max(0, end + 1 - self._longest)
        return not any(self._begins_piece(text[at : end + 1]) for at in range(first, end))

    def _begins_piece(self, text: bytes) -> bool:
        at = bisect_left(self._pieces, text)
        return at < len(self._pieces) and self._pieces[at].startswith(text)

    def _tokens(self, text: bytes) -> list[int]:
        tokens = list[int]()
        for index, part in enumerate(_BROKEN.split(text.decode("utf-8", "surrogateescape"))):
            tokens += self._cut(_encoded(part)) if index % 2 else self._whole(part)
        return tokens

    def _whole(self, text: str) -> list[int]:
        if not text:
            return []
        if not self._lead_bytes:
            return self._tokenize(text)
        tokens = self._tokenize(_LEAD + text)
        return tokens[bisect_right(self.ends_of(tokens), self._lead_bytes) :]

    def _cut(self, text: bytes) -> Iterator[int]:
        while text:
            token = self.longest_prefix(text)
            if token is not None:
                yield token
            text = text[1 if token is None else len(self.vocabulary.pieces[token]) :]


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
