"""The draft model's own tokens spell an answer's text and what it drew beyond, with the
confidence in each."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from math import prod
from typing import Final

from edge_agent.draft.retokeniser import Retokeniser
from local_models.llama_cpp.prefix import common_prefix

REREAD_TOKENS: Final = 4
"""When the text changes, this many tokens before the change are tokenised again, because the
new text may merge with them."""


class DraftText:
    """The tokens spell a beginning of the text that they follow, or the whole text and what the
    draft model has written beyond it."""

    def __init__(self, retokeniser: Retokeniser) -> None:
        self.tokens: list[int] = []
        self.decoded = b""
        self._retokeniser = retokeniser
        self._ends: list[int] = []  # the end of each token, in bytes
        self._confidences: list[float] = []
        self._followed = b""

    def follow(self, text: bytes, can_continue: Callable[[bytes], bool]) -> bytes:
        """Make the tokens spell the beginning of `text`, or more. Return the end of it that
        they do not spell: the draft model chooses the tokens for it, because its next tokens
        depend on them. `return` after four spaces, say, begins with the fourth.

        can_continue: returns True if the text can go on with these bytes.
        """
        if text != self._followed:
            self._followed = text
            beyond = self.decoded[len(text) :]
            if not self.decoded.startswith(text) or (beyond and not can_continue(beyond)):
                self._rewrite(text)
        return text[len(self.decoded) :]

    def _rewrite(self, text: bytes) -> None:
        same = common_prefix(self.decoded, text)
        kept = max(0, bisect_right(self._ends, same) - REREAD_TOKENS)
        start = self._ends[kept - 1] if kept else 0
        for each in self.tokens, self._ends, self._confidences:
            del each[kept:]
        tokens = self._retokeniser.tokenise(text[start:])
        if self._retokeniser.bytes_of(tokens) == text[start:]:
            tokens = self._retokeniser.stable(text[start:])
            ends = self._retokeniser.ends_of(tokens, start)
            self.decoded = text[: ends[-1]] if ends else text[:start]
        else:  # the draft model lacks tokens for some of it
            ends = [len(text)] * len(tokens)
            self.decoded = text
        self.tokens += tokens
        self._ends += ends
        self._confidences += [1.0] * len(tokens)

    @property
    def last(self) -> bytes:
        """The bytes that the last token spells."""
        return self._retokeniser.bytes_of(self.tokens[-1:])

    def append(self, token: int, confidence: float) -> None:
        """Add a token that the draft model drew."""
        self.decoded += self._retokeniser.vocabulary.pieces[token]
        self.tokens.append(token)
        self._ends.append(len(self.decoded))
        self._confidences.append(confidence)

    def drawn_since(self, start: int) -> int:
        """Return how many tokens end after byte `start`."""
        return len(self._ends) - bisect_right(self._ends, start)

    def confidences(self, start: int, ends: Iterable[int]) -> list[float]:
        """Return the confidence in each stretch of the text from `start` on, given their ends.

        This is the product over the draft model's tokens that begin in the stretch: a token
        that spells several stretches counts for the first.
        """
        result = []
        first = bisect_left(self._ends, start) + 1 if start else 0
        for end in ends:
            last = bisect_left(self._ends, end) + 1
            result.append(prod(self._confidences[first:last]))
            first = last
        return result
