"""N-grams: n tokens in a row, and what followed when they were said before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from speculation.protocol.messages import TokenId

LENGTHS: Final = (16, 8, 3, 1)
"""Of the n-grams, longest first: a match of 8 to 15 tokens counts as one of 8."""

_Gram = tuple[TokenId, ...]


@dataclass(frozen=True, slots=True)
class Match:
    """A token that followed when the end of the text was said before."""

    token: TokenId
    at: int
    """Where it stands."""

    length: int
    """n, of the n-gram that ends the text."""


class Index:
    """A text that grows and shrinks at its end, each in constant time a token."""

    def __init__(self, tokens: Iterable[TokenId] = ()) -> None:
        self.tokens: list[TokenId] = []
        self._after: dict[_Gram, int] = {}  # where the token stands that followed it last
        self._replaced: list[list[int | None]] = []  # what each token overwrote there
        self._ending: list[_Gram] = []  # the n-grams that end the text
        for token in tokens:
            self.append(token)

    def append(self, token: TokenId) -> None:
        at = len(self.tokens)
        self._replaced.append([self._after.get(gram) for gram in self._ending])
        self._after.update(dict.fromkeys(self._ending, at))
        self.tokens.append(token)
        self._ending = self._grams()

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on, as if they had never been said."""
        while len(self.tokens) > length:
            self.tokens.pop()
            self._ending = self._grams()
            for gram, at in zip(self._ending, self._replaced.pop(), strict=True):
                if at is None:
                    del self._after[gram]
                else:
                    self._after[gram] = at

    def match(self) -> Match | None:
        """Return what followed the last occurrence of the longest n-gram, one of LENGTHS."""
        for gram in self._ending:
            if (at := self._after.get(gram)) is not None:
                return Match(self.tokens[at], at, len(gram))
        return None

    def _grams(self) -> list[_Gram]:
        return [tuple(self.tokens[-n:]) for n in LENGTHS if n <= len(self.tokens)]


def resumption(
    unsaid: Sequence[TokenId], text: Sequence[TokenId], at: int, *, most: int
) -> Match | None:
    """Return where a chain that broke goes on like the text after it does, if anywhere.

    unsaid: that chain, from its wrong token on, which stood at `at` in the text. Of several
    places the one with most tokens the same before it, up to `most`, then the nearest.
    """
    found = [
        Match(unsaid[end], end, agreed)
        for end in range(1, len(unsaid))
        if (agreed := _agreed(unsaid[:end], text, most))
    ]
    here = len(text) - at
    return max(found, key=lambda m: (m.length, -abs(m.at - here)), default=None)


def _agreed(one: Sequence[TokenId], other: Sequence[TokenId], most: int) -> int:
    """Return how many tokens at both ends are the same, up to `most`."""
    pairs = zip(reversed(one), reversed(other), range(most), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
