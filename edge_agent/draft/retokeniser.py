"""Text in the tokens of another vocabulary: tokenised while it grows, and mapped by tokens."""

from __future__ import annotations

import codecs
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, groupby
from typing import Final

import numpy as np

from local_models.tokenizer import Encoder, Tokenizer
from local_models.vocabulary import Vocabulary
from speculation.distributions import Logits
from speculation.messages import TokenId
from speculation.noise import Tokens

# Tokenises text that still grows, up to the last boundary that no continuation can move.
#
# A boundary between two tokens is *certain* if no piece of the vocabulary can reach across it,
# whatever follows: then every tokenisation of every continuation has a boundary there. The text
# before it is tokenised as if nothing followed: merges (byte pair encoding) and best paths
# (unigram) on one side do not depend on the other, and the expressions that cut text into words
# look at most one character ahead, which is known at such a boundary.
#
# For the same reason text can be tokenised from any boundary on, if a few tokens before it are
# known: in `--,the` a word begins with `the`, and in `,the` it may begin with the comma.

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
            if piece and not vocabulary.is_special(token):
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


# Maps tokens between the target's vocabulary and the draft model's.

_UNREACHABLE: Final = 1e-300
"""The weight of a target token that begins no token of the draft model, where the likeliest one
has 1: it is drawn only if a mask leaves nothing else."""


class Projection:
    """The draft model's distribution over the target's tokens. Each token of the draft model
    counts for the target token that its text begins with. So the masks and penalties of a
    request, which use target ids, apply unchanged; and a token that both vocabularies have is
    drawn with the same noise at both ends.

    special: maps special tokens of the draft model to the target's; those without one are never
    drawn.
    """

    def __init__(
        self, draft: Vocabulary, target: Retokeniser, special: Mapping[int, TokenId]
    ) -> None:
        size = self._size = len(target.vocabulary.pieces)

        def first(token: int, piece: bytes) -> int:
            if draft.is_special(token):
                return special.get(token, size)
            prefix = target.longest_prefix(piece)
            return size if prefix is None else prefix

        self._first = np.array([first(*each) for each in enumerate(draft.pieces)], np.int64)
        """The target token for which each token of the draft model counts; the number of target
        tokens stands for none."""

    def __call__(self, logits: Logits) -> Logits:
        """Return float32[V of the target] from float32[V of the draft model]."""
        weights = np.exp(logits - logits.max(), dtype=np.float64)
        sums = np.bincount(self._first, weights, self._size + 1)[:-1]
        projected: Logits = np.log(sums + _UNREACHABLE).astype(np.float32)
        return projected

    def likeliest(self, logits: Logits, token: TokenId) -> int | None:
        """Return the draft model's likeliest token that counts for a target token, if any."""
        group = np.flatnonzero(self._first == token)
        return int(group[np.argmax(logits[group])]) if group.size else None


class Translation:
    """Serves one target and one draft model. Making it takes a second, so sessions share it."""

    def __init__(self, target: Tokenizer, draft: Encoder) -> None:
        alone = partial(target.encode, special=False, begin=False)
        self.target = Retokeniser(target.vocabulary, alone)
        self.draft = Retokeniser(draft.vocabulary, lambda text: draft.tokenize(text, False))
        self.to_target = special_tokens(draft.vocabulary, target.vocabulary)
        self.projection = Projection(draft.vocabulary, self.target, self.to_target)
        self._to_draft = special_tokens(target.vocabulary, draft.vocabulary)
        self._begins = draft.raw_beginning

    def prompt(self, tokens: Sequence[TokenId]) -> list[int]:
        """Return the draft model's tokens for a prompt in the target's. Special tokens that the
        draft model lacks are spelt out, except for a leading one, which has no content."""
        if tokens and self._is_lacking(tokens[0]):
            tokens = tokens[1:]
        draft_tokens = list[int]()
        for token, run in groupby(tokens, self._to_draft.get):
            if token is None:
                draft_tokens += self.draft.tokenise(self.target.bytes_of(run))
            else:
                draft_tokens += [token for _ in run]
        begins = self._begins
        return (
            draft_tokens
            if tuple(draft_tokens[: len(begins)]) == begins
            else [*begins, *draft_tokens]
        )

    def _is_lacking(self, token: TokenId) -> bool:
        return self.target.vocabulary.is_special(token) and token not in self._to_draft


def special_tokens(source: Vocabulary, into: Vocabulary) -> dict[int, int]:
    """Map the special tokens of one vocabulary to those of another: by the same spelling, or
    else as the end of a turn."""
    same = {
        token: into.markers[text]
        for text, token in source.markers.items()
        if text in into.markers
    }
    ends = dict.fromkeys(source.stop_tokens, into.eos)
    return {token: end for token, end in ends.items() if end is not None} | same
