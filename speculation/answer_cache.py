"""A cache of answers to earlier requests: text that repeats one probably goes on as it did.

Answers lie one after another in a ring of tokens, each after the end of its prompt. Hash
tables, one for each n-gram length, hold where an n-gram occurred last. Nothing is deleted
from them: a match counts only if its tokens are still in the ring, so the oldest ones leave
first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from speculation.model_facts import TokenId
from speculation.ngrams import POWERS, Match, keys

ANSWER_CACHE_LENGTHS: Final = (16, 8)
"""An edge keeps n-grams of these lengths, longest first. A token takes 4 bytes in the ring, and
4 to 8 in each table."""

CONTEXT: Final = 64
"""This many tokens of a prompt's end are kept before its answer: prompts often end alike."""

Ids = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Owner:
    """An Owner is a tenant, or one of the tenant's own users, to whom answers were given."""

    tenant: str
    user: str = ""


SHARED: Final = Owner("")
"""This owner stands for all tenants, where they share prefixes and so answers too."""


class AnswerCache:
    """max_tokens: size of the ring, more than max(LENGTHS). lengths: those of the n-grams, the
    longest first."""

    def __init__(self, max_tokens: int, lengths: Sequence[int] = ANSWER_CACHE_LENGTHS) -> None:
        self._lengths = tuple(lengths)
        self._ring = np.zeros(max_tokens, np.uint32)  # token ids plus 1; 0 ends each text
        self._next = 0
        self._bits = max_tokens.bit_length()
        self._after = {n: np.zeros(1 << self._bits, np.uint32) for n in self._lengths}
        """Maps the upper bits of an n-gram's key to the place in the ring of the token that
        followed."""

        self._views = {n: after.data for n, after in self._after.items()}

    def add(self, prompt: Sequence[TokenId], answer: Sequence[TokenId]) -> None:
        """Add an answer, complete or not, unless it is the one that the cache expects."""
        if not answer or self.expected(prompt, len(answer)) == tuple(answer):
            return
        kept = [*prompt[-CONTEXT:], *answer][: len(self._ring) - 1]
        text = _ids([*kept, -1])
        places = (np.arange(len(text)) + self._next) % len(self._ring)
        self._ring[places] = text
        self._next = (self._next + len(text)) % len(self._ring)
        for n, after in self._after.items():
            if len(kept) > n:
                hashes = self._hashes(sliding_window_view(text[:-2], n))
                after[hashes[::-1]] = places[n:-1][::-1]  # a text's first one counts

    def match(
        self, text: Sequence[TokenId], known: Mapping[int, int] | None = None
    ) -> Match | None:
        """Return what followed the longest n-gram that ends a text at its last occurrence in
        the cache. The match's index is for `following`. known: the text's `keys`."""
        known = keys(text) if known is None else known
        for n in self._lengths:
            key = known.get(n)
            if key is None or not (at := self._views[n][key >> (64 - self._bits)]):
                continue  # no n-gram has this hash
            *before, token = self._slice(at - n, n + 1).tolist()
            if token and [each - 1 for each in before] == list(text[-n:]):
                return Match(token - 1, at, n)
        return None

    def following(self, at: int, most: int) -> tuple[TokenId, ...]:
        """Return the tokens from a match on, up to the end of their answer."""
        ids = self._slice(at, min(most, len(self._ring)))
        ends = np.flatnonzero(ids == 0)
        return tuple((ids[: ends[0] if len(ends) else None].astype(np.int64) - 1).tolist())

    def expected(self, prompt: Sequence[TokenId], most: int) -> tuple[TokenId, ...]:
        """Return how the answer to a prompt probably begins; empty if nothing is known.

        This is the answer whose prompt has the most n-grams at the same distance from its end,
        at least half of them: a shared template and instruction do not make prompts alike.
        """
        begins: Counter[int] = Counter()
        compared = min(CONTEXT, len(prompt))
        for behind in range(compared):
            if match := self.match(
                prompt[-max(ANSWER_CACHE_LENGTHS) - behind : len(prompt) - behind]
            ):
                begins[(match.at + behind) % len(self._ring)] += 1
        (at, votes), *_ = begins.most_common(1) or [(0, 0)]
        return self.following(at, most) if 0 < compared <= 2 * votes else ()

    def _slice(self, begin: int, size: int) -> Ids:
        if 0 <= begin <= len(self._ring) - size:
            return self._ring[begin : begin + size]
        return self._ring.take(np.arange(begin, begin + size), mode="wrap")

    def _hashes(self, grams: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """Return the hash of each n-gram. grams: [count, n], of ids plus 1."""
        powers = np.array([POWERS[n] for n in range(grams.shape[1], 0, -1)], np.uint64)
        mixed: NDArray[np.uint64] = (grams * powers).sum(1)
        return mixed >> np.uint64(64 - self._bits)


def _ids(tokens: Sequence[TokenId]) -> Ids:
    return (np.array(tokens, np.int64) + 1).astype(np.uint32)
