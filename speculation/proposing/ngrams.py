"""N-grams of a text (n tokens in a row), and the tokens that followed earlier occurrences."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

import numpy as np

from picospec.speculation.protocol.messages import TokenId

LENGTHS: Final = (16, 8, 3, 1)
"""N-grams of these lengths are kept, longest first; a match of 8 to 15 tokens counts as 8."""

STEP_TOKENS: Final = 4096
"""The n-grams of this many tokens are made at once, which takes a millisecond."""

Gram = tuple[TokenId, ...]


@dataclass(frozen=True, slots=True)
class Match:
    """A token that followed an earlier occurrence of the tokens that end the text."""

    token: TokenId
    at: int  # the token's index in the text
    length: int  # the number of tokens that agree before it


class PromptGrams:
    """The n-grams of a prompt. They never change, so all answers to the prompt share them; a
    thread may make them, in steps between which other threads run.

    A token takes 12 bytes for each length: the n-grams are sorted by hash, those with equal
    hashes by position. (A dictionary of them takes 600 bytes a token.)
    """

    def __init__(self, tokens: Sequence[TokenId]) -> None:
        self.tokens = tuple(tokens)
        self._sorted = {n: self._by_hash(n) for n in LENGTHS}

    def last(self, gram: Gram) -> int | None:
        """Return the index of the token that followed the last occurrence of an n-gram."""
        hashes, ends = self._sorted[len(gram)]
        if not (place := bisect_right(hashes, hash(gram))):
            return None
        end = ends[place - 1]
        return end if self.tokens[end - len(gram) : end] == gram else None

    def _by_hash(self, n: int) -> tuple[memoryview[int], memoryview[int]]:
        """Return the hashes of all n-grams that a token follows, and those tokens' indices."""
        count = max(0, len(self.tokens) - n)
        hashes = np.empty(count, np.int64)
        for begin in range(0, count, STEP_TOKENS):
            end = min(begin + STEP_TOKENS, count)
            grams = zip(*(self.tokens[begin + i : end + i] for i in range(n)), strict=True)
            hashes[begin:end] = np.fromiter(map(hash, grams), np.int64, end - begin)
        order = np.argsort(hashes, kind="stable")
        return hashes[order].data, (order + n).astype(np.uint32).data


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
        """Maps the hash of an n-gram to the index of the token that followed it last, behind
        the prompt."""

        self._replaced: list[tuple[list[int], list[int | None]]] = []
        """Each token followed n-grams of these hashes, and overwrote these in `_after`."""

        self._ending = self._hashes()  # of the n-grams that end the text, longest first
        for token in tokens:
            self.append(token)

    def append(self, token: TokenId) -> None:
        at, after, ending = len(self.tokens), self._after, self._ending
        self._replaced.append((ending, [after.get(gram) for gram in ending]))
        for gram in ending:
            after[gram] = at
        self.tokens.append(token)
        self._ending = self._hashes()

    def truncate(self, length: int) -> None:
        """Remove the tokens from `length` on, as if they had never been appended. The prompt's
        tokens must remain."""
        while len(self.tokens) > length:
            self.tokens.pop()
            self._ending, replaced = self._replaced.pop()
            for gram, at in zip(self._ending, replaced, strict=True):
                if at is None:
                    del self._after[gram]
                else:
                    self._after[gram] = at

    def match(self) -> Match | None:
        """Return what followed the last occurrence of the longest n-gram, one of LENGTHS."""
        found = None
        for n, gram in zip(reversed(LENGTHS), reversed(self._ending), strict=False):
            ending = self.tokens[-n:]  # a longer n-gram contains the shorter ones
            at = self._after.get(gram)
            if at is None or self.tokens[at - n : at] != ending:
                at = self._prompt.last(tuple(ending))
            if at is None:
                break
            found = Match(self.tokens[at], at, n)
        return found

    def _hashes(self) -> list[int]:
        tokens = self.tokens
        return [hash(tuple(tokens[-n:])) for n in LENGTHS if n <= len(tokens)]


def resumption(
    dropped: Sequence[TokenId], text: Sequence[TokenId], at: int, *, most: int
) -> Match | None:
    """Return where a broken chain goes on like the text after it, None if nowhere: the place
    with most agreeing tokens before it, up to `most`, and among equals the nearest. dropped:
    the chain from its wrong token on, which had the index `at` in the text."""
    found = []
    for end, before in enumerate(dropped[:-1], 1):
        if not text or before != text[-1]:
            continue
        pairs = zip(reversed(dropped[:end]), reversed(text), range(most), strict=False)
        agreed = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        found.append(Match(dropped[end], end, agreed))
    here = len(text) - at
    return max(found, key=lambda m: (m.length, -abs(m.at - here)), default=None)
