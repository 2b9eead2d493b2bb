"""Draft tokens from a text that the client expects in the answer: OpenAI's Predicted Outputs.

A client that has a file edited knows most of the answer. The verifier follows the answer in
that text, the prediction, from its first token on, and proposes what comes next in it. Where
the answer differs, it looks for the point at which the answer goes on in the prediction: after
a changed, deleted or added line.

The precision of predicted tokens is learned by how many tokens agreed before them, even where
none is proposed. So a wrong prediction soon takes no rows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from speculation.learning import Continuation, Precision
from speculation.model_facts import TokenId

LENGTHS: Final = (8, 3, 1)
"""N-grams of these lengths are used to find a lost alignment, longest first."""

SURE: Final = 3
"""This many tokens must agree before an alignment is sure: one or two may agree by chance.
The answer's first token counts as found, because a prediction begins where the answer does."""

PRIORS: Final = {16: (0.99, 16), 8: (0.95, 4), SURE: (0.9, 2), 1: (0.5, 4), 0: (0.0, 1)}
"""Maps the number of tokens that agreed before it to how often a predicted token is right, and
to the number of observations that this prior counts as; each answer corrects it."""

INDEXED_AHEAD: Final = 2048
"""This many tokens after the last sure alignment are searched for the next one. Indexing them
takes a few milliseconds; the index grows with the alignment."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """An answer has come this far in its prediction."""

    at: int  # the index of the predicted token that should come next
    agreed: int  # tokens before it that the answer has too; 0: it is lost
    last: int  # the latest index at which it was sure


START: Final = Alignment(at=0, agreed=SURE, last=0)


class Prediction:
    """Follows one answer in its prediction, with an index of the prediction's n-grams."""

    def __init__(self, tokens: Sequence[TokenId]) -> None:
        self._predicted = tuple(tokens)
        self._ends: defaultdict[tuple[TokenId, ...], list[int]] = defaultdict(list)
        """Maps an n-gram to the places where it ends, in ascending order."""

        self._indexed = 0
        self._text: list[TokenId] = []  # the committed tokens, and the drafts after them
        self._alignments = [START]  # for each position, up to the next one
        self._precision = {agreed: Precision(*prior) for agreed, prior in PRIORS.items()}
        self._committed = 0
        self._found: set[int] = set()  # indices of the predicted tokens that the answer has

    @property
    def accepted_tokens(self) -> int:
        """The number of predicted tokens in the committed text, each counted once."""
        return len(self._found)

    @property
    def rejected_tokens(self) -> int:
        """The number of predicted tokens that the committed text lacks."""
        return len(self._predicted) - len(self._found)

    def follow(self, committed: Sequence[TokenId], drafts: Sequence[TokenId] = ()) -> None:
        """Move to the end of the draft tokens, which follow the committed tokens."""
        for position in range(self._committed, len(committed)):
            self._commit(position, committed[position])
        self._committed = len(committed)
        for token in drafts[len(self._text) - self._committed :]:
            self._append(token)

    def continuation(self, most: int) -> Continuation:
        """Return at most `most` tokens that should come next."""
        alignment = self._alignments[-1]
        end = alignment.at + most if alignment.agreed else alignment.at
        return Continuation(
            self._predicted[alignment.at : end], alignment.agreed, self._precision
        )

    def _precision_at(self, alignment: Alignment) -> Precision:
        return self._precision[max(agreed for agreed in PRIORS if agreed <= alignment.agreed)]

    def _commit(self, position: int, token: TokenId) -> None:
        alignment = self._alignments[position]
        expected = self._next(alignment)
        if expected is not None and alignment != START:  # words before a prediction are common
            self._precision_at(alignment).observe(expected == token)
        if self._text[position : position + 1] != [token]:
            del self._text[position:], self._alignments[position + 1 :]
            self._append(token)
        self._count(self._alignments[position + 1])

    def _count(self, alignment: Alignment) -> None:
        """Count the tokens that agree up to a sure alignment, also those before it was sure."""
        if alignment.agreed >= SURE:
            first = max(0, alignment.at - min(alignment.agreed, max(LENGTHS)))
            self._found.update(range(first, alignment.at))

    def _append(self, token: TokenId) -> None:
        self._text.append(token)
        self._alignments.append(self._after(self._alignments[-1], self._text))

    def _next(self, alignment: Alignment) -> TokenId | None:
        """Return the token that should come next, if there is one."""
        known = alignment.agreed > 0 and alignment.at < len(self._predicted)
        return self._predicted[alignment.at] if known else None

    def _after(self, alignment: Alignment, text: Sequence[TokenId]) -> Alignment:
        """Return the alignment after the last token of `text`. alignment: that before it."""
        if alignment.agreed >= SURE and self._next(alignment) == text[-1]:
            return Alignment(alignment.at + 1, alignment.agreed + 1, alignment.at + 1)
        return self._find(text, alignment.last)

    def _find(self, text: Sequence[TokenId], last: int) -> Alignment:
        """Return the alignment at the longest n-gram that ends the text. Those behind `last`
        come first: an answer leaves out more often than it goes back."""
        self._index_to(last + INDEXED_AHEAD)
        for n in LENGTHS:
            if ends := self._ends.get(tuple(text[-n:]) if n <= len(text) else ()):
                index = bisect_left(ends, last)
                at = ends[index] if index < len(ends) else ends[-1]
                return Alignment(at, n, at if n >= SURE else last)
        return Alignment(last, 0, last)

    def _index_to(self, most: int) -> None:
        for end in range(self._indexed + 1, min(most, len(self._predicted)) + 1):
            self._indexed = end
            for n in LENGTHS:
                if n <= end:
                    self._ends[self._predicted[end - n : end]].append(end)
