"""Earlier text that an answer may repeat: the n-grams of a text, and a cache of answers."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from speculation.messages import TokenId

# N-grams of a text (n tokens in a row), and the tokens that followed earlier occurrences.

LENGTHS: Final = (16, 8, 3, 2, 1)
"""N-grams of these lengths are kept, longest first; a match of 8 to 15 tokens counts as 8."""

PLACE_BITS: Final = 24
"""The lower bits of a prompt's n-gram hold the index of the token that followed it, the upper
bits its key: an n-gram is missed if another one of the same prompt has the same 40 bits. A
prompt with more tokens than these bits can count is indexed up to there."""

_PLACES: Final = (1 << PLACE_BITS) - 1
_MASK: Final = (1 << 64) - 1
_BASE: Final = 0x9E3779B97F4A7C15
POWERS: Final = {n: pow(_BASE, n, 1 << 64) for n in range(1, max(LENGTHS) + 1)}
"""The key of an n-gram is the sum of its tokens, each plus one, times these, modulo 2**64. The
first power belongs to its last token. So the keys of a text that grows follow from one another
(Rabin and Karp 1987), and those of a prompt are computed as vectors."""


@dataclass(frozen=True, slots=True)
class Match:
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


# A cache of answers to earlier requests: text that repeats one probably goes on as it did.
#
# Answers lie one after another in a ring of tokens, each after the end of its prompt. Hash
# tables, one for each n-gram length, hold where an n-gram occurred last. Nothing is deleted
# from them: a match counts only if its tokens are still in the ring, so the oldest ones leave
# first.

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
