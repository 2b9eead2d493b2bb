"""N-grams of a text, which are n tokens in a row, and what followed where they stood before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from picospec.speculation.protocol.messages import TokenId

LENGTHS: Final = (16, 8, 3, 1)
"""Lengths of the n-grams kept, longest first: a match of 8 to 15 tokens counts as one of 8."""

STEP_TOKENS: Final = 4096
"""Tokens whose n-grams are made at once, which takes two milliseconds."""

Gram = tuple[TokenId, ...]


@dataclass(frozen=True, slots=True)
class Match:
    """A token that followed where the end of the text stood before."""

    token: TokenId
    at: int  # the token's index in the text
    length: int  # tokens that agree before it


class PromptGrams:
    """The n-grams of a prompt. It never changes, so that all answers to the prompt share it; a
    thread may make it, in steps between which other threads run."""

    def __init__(self, tokens: Sequence[TokenId]) -> None:
        self.tokens = tuple(tokens)
        self.after: dict[Gram, int] = {}  # the index of the token that followed it last
        for n in LENGTHS:
            for begin in range(0, len(tokens) - n, STEP_TOKENS):
                ends = range(begin + n, min(begin + n + STEP_TOKENS, len(tokens)))
                shifted = (self.tokens[begin + i : ends.stop - n + i] for i in range(n))
                self.after.update(zip(zip(*shifted, strict=True), ends, strict=True))


class Index:
    """A text that grows and shrinks at its end, in constant time a token.

    prompt: its beginning, which stays. tokens: what follows that.
    """

    def __init__(
        self, tokens: Iterable[TokenId] = (), prompt: PromptGrams | None = None
    ) -> None:
        self.tokens: list[TokenId] = list(prompt.tokens) if prompt else []
        self._in_prompt: Mapping[Gram, int] = prompt.after if prompt else {}
        self._after: dict[Gram, int] = {}  # the same of the tokens after the prompt
        self._replaced: list[list[int | None]] = []  # by token: what it overwrote in _after
        self._ending = self._grams()  # the n-grams that end the text
        for token in tokens:
            self.append(token)

    def append(self, token: TokenId) -> None:
        at = len(self.tokens)
        self._replaced.append([self._after.get(gram) for gram in self._ending])
        self._after.update(dict.fromkeys(self._ending, at))
        self.tokens.append(token)
        self._ending = self._grams()

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on, as if they had never been appended: none of the
        prompt's."""
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
            at = self._after.get(gram) or self._in_prompt.get(gram)  # an index is never 0
            if at is not None:
                return Match(self.tokens[at], at, len(gram))
        return None

    def _grams(self) -> list[Gram]:
        return [tuple(self.tokens[-n:]) for n in LENGTHS if n <= len(self.tokens)]


def resumption(
    dropped: Sequence[TokenId], text: Sequence[TokenId], at: int, *, most: int
) -> Match | None:
    """Return where a broken chain continues like the text after it does, if anywhere: the place
    with most agreeing tokens before it, up to `most`, and among equals the nearest.
    dropped: the chain from its wrong token on, which had the index `at` in the text."""
    found = []
    for end, before in enumerate(dropped[:-1], 1):
        if not text or before != text[-1]:
            continue
        pairs = zip(reversed(dropped[:end]), reversed(text), range(most), strict=False)
        agreed = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        found.append(Match(dropped[end], end, agreed))
    here = len(text) - at
    return max(found, key=lambda m: (m.length, -abs(m.at - here)), default=None)
