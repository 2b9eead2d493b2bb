"""N-grams of a text (n tokens in a row), and the tokens that followed earlier occurrences."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from speculation.model_facts import TokenId

LENGTHS: Final = (16, 8, 3, 2, 1)
"""N-grams of these lengths are kept, longest first; a match of 8 to 15 tokens counts as 8."""

PLACE_BITS: Final = 24
"""The lower bits of a prompt's n-gram hold the index of the token that followed it, the upper
bits its key: an n-gram is missed if another one of the same prompt has the same 40 bits. A
prompt with more tokens than these bits can count is indexed up to there."""

_PLACES: Final = (1 << PLACE_BITS) - 1
_MASK: Final = (1 << 64) - 1
_BASE: Final = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio (Knuth, volume 3, 6.4)
POWERS: Final = {n: pow(_BASE, n, 1 << 64) for n in range(1, max(LENGTHS) + 1)}
"""The key of an n-gram is the sum of its tokens, each plus one, times these, modulo 2**64. The
first power belongs to its last token. So the keys of a text that grows follow from one another
(Rabin and Karp 1987), and those of a prompt are computed as vectors."""


class Match(NamedTuple):  # each token makes one: dataclasses take longer
    """A token that followed an earlier occurrence of the tokens that end the text."""

    token: TokenId
    at: int  # the token's index in the text
    length: int  # the number of tokens that agree before it


class PromptGrams:
    """The n-grams of a prompt. They never change, so all answers to the prompt share them; a
    thread may make them.

    A token takes 8 bytes for each length: the n-grams are sorted by hash, those with equal
    hashes by position. (A dictionary of them takes 600 bytes a token.)
    """

    def __init__(self, tokens: Sequence[TokenId]) -> None:
        self.tokens = tuple(tokens)
        self._sorted = _sorted_keys(np.array(self.tokens[: _PLACES + 1], np.uint64))

    def last(self, n: int, key: int) -> int | None:
        """Return the index of the token that followed the last n-gram with this key."""
        keys = self._sorted[n]
        if not (place := bisect_right(keys, key | _PLACES)):
            return None
        entry = keys[place - 1]
        return None if (entry ^ key) >> PLACE_BITS else entry & _PLACES


def _sorted_keys(tokens: NDArray[np.uint64]) -> dict[int, memoryview[int]]:
    """Return by length the sorted keys of all n-grams that a token follows, with its index."""
    keys: dict[int, memoryview[int]] = {}
    places = np.arange(len(tokens), dtype=np.uint64)
    mixed = np.zeros(len(tokens), np.uint64)  # at each place, of the n-gram before it
    for n, power in POWERS.items():
        mixed[n:] += (tokens[:-n] + np.uint64(1)) * np.uint64(power)
        if n in LENGTHS:
            sorted_keys = mixed[n:] & np.uint64(_MASK - _PLACES) | places[n:]
            sorted_keys.sort()
            keys[n] = sorted_keys.data
    return keys


def keys(tokens: Sequence[TokenId]) -> dict[int, int]:
    """Return by length the keys of the n-grams that end a text."""
    keys_by_length, key = {}, 0
    for n, token in enumerate(reversed(tokens[-max(LENGTHS) :]), 1):
        key += (token + 1) * POWERS[n]
        if n in LENGTHS:
            keys_by_length[n] = key & _MASK
    return keys_by_length


class Index:
    """A text that grows and shrinks at its end, in constant time per token.

    prompt: the fixed beginning of the text. tokens: the tokens after the prompt.
    """

    def __init__(
        self, tokens: Iterable[TokenId] = (), prompt: PromptGrams | None = None
    ) -> None:
        self._prompt = prompt or PromptGrams(())
        self.tokens: list[TokenId] = list(self._prompt.tokens)
        self._after: dict[int, int] = {}
        """Maps the key of an n-gram to the index of the token that followed it last, behind the
        prompt."""

        self._replaced: list[tuple[tuple[int, ...], tuple[int | None, ...]]] = []
        """Each token followed n-grams of these keys, and overwrote these in `_after`."""

        self._sums = [0]
        """The key of the text from some token on, after each further token."""

        for token in self.tokens[-max(LENGTHS) :]:
            self._extend_sums(token)
        self._ending = self._keys()  # of the n-grams that end the text, longest first
        for token in tokens:
            self.append(token)

    def append(self, token: TokenId) -> None:
        at, after, ending = len(self.tokens), self._after, self._ending
        self._replaced.append((ending, tuple([after.get(gram) for gram in ending])))
        for gram in ending:
            after[gram] = at
        self.tokens.append(token)
        self._extend_sums(token)
        self._ending = self._keys()

    @property
    def keys(self) -> dict[int, int]:
        """The keys of the n-grams that end the text, by length."""
        return dict(zip(LENGTHS[-len(self._ending) :], self._ending, strict=False))

    def truncate(self, length: int) -> None:
        """Remove the tokens from `length` on, as if they had never been appended. The prompt's
        tokens must remain."""
        while len(self.tokens) > length:
            self.tokens.pop()
            self._sums.pop()
            self._ending, replaced = self._replaced.pop()
            for gram, at in zip(self._ending, replaced, strict=True):
                if at is None:
                    del self._after[gram]
                else:
                    self._after[gram] = at

    def match(self) -> Match | None:
        """Return what followed the last occurrence of the longest n-gram, one of LENGTHS."""
        at, length = 0, 0  # an index is never 0
        for n, key in zip(reversed(LENGTHS), reversed(self._ending), strict=False):
            # a longer n-gram contains the shorter ones
            if not (last := self._after.get(key) or self._prompt.last(n, key)):
                break
            at, length = last, n
        tokens = self.tokens
        if not at or tokens[at - length : at] != tokens[-length:]:
            return None  # another n-gram may have the same key
        return Match(tokens[at], at, length)

    def _extend_sums(self, token: TokenId) -> None:
        self._sums.append((self._sums[-1] + token + 1) * _BASE & _MASK)

    def _keys(self) -> tuple[int, ...]:
        # Of tuples of numbers, unlike of lists, the garbage collector keeps no record.
        sums, last = self._sums, self._sums[-1]
        known = len(sums) - 1
        return tuple([last - sums[-1 - n] * POWERS[n] & _MASK for n in LENGTHS if n <= known])


def resumption(
    dropped: Sequence[TokenId], text: Sequence[TokenId], at: int, *, most: int
) -> Match | None:
    """Return where a broken chain goes on like the text after it, None if nowhere: the place
    with most agreeing tokens before it, up to `most`, and among equals the nearest. dropped:
    the chain from its wrong token on, which had the index `at` in the text."""
    matches = []
    for end, before in enumerate(dropped[:-1], 1):
        if not text or before != text[-1]:
            continue
        pairs = zip(reversed(dropped[:end]), reversed(text), range(most), strict=False)
        agreed = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        matches.append(Match(dropped[end], end, agreed))
    here = len(text) - at
    return max(matches, key=lambda m: (m.length, -abs(m.at - here)), default=None)
