"""Draft tokens from a text that the client expects in the answer: OpenAI's Predicted Outputs.

A client that has a file edited knows most of the answer. The edge follows the answer in that
text, the prediction, from its first token on, and proposes what comes next in it. Such a token
needs no draft step. Where the answer differs, the edge looks for the place at which the answer
goes on in the prediction: after a changed, a left out or an added line. Where it is sure of
this place, but has often been wrong, the draft model reads what follows, see prompt_lookup.

A wrong prediction costs little: how often its tokens are right is learned by how many tokens
agreed before, also where none is proposed, and what is not mostly right is not proposed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from speculation.proposing.latencies import Latencies
from speculation.proposing.ngrams import Gram
from speculation.proposing.prompt_lookup import Precision, ReadingTime, ahead_size
from speculation.proposing.proposer import Proposer
from speculation.protocol.messages import TokenId
from speculation.sampling.draft_token import DraftToken

LENGTHS: Final = (8, 3, 1)
"""Lengths of the n-grams by which a lost place is found, longest first."""

SURE: Final = 3
"""Tokens that must agree before a place counts as found: one or two may agree by chance. The
first token of the answer has the same standing, because a prediction begins where it does."""

MIN_CONFIDENCE: Final = 0.8
"""A token that is less likely to be right is not proposed unread: draft models are right about
as often, and a rejected token costs a round trip."""

PRIORS: Final = {16: (0.99, 16), 8: (0.95, 4), SURE: (0.9, 2), 1: (0.5, 4), 0: (0.0, 1)}
"""By the tokens that agreed before it: how often a predicted token is right, and the number of
tokens that this counts as. A prior; each answer corrects it by what it sees. One wrong token
at SURE is enough to stop proposing there, until others have been right."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an answer is in its prediction."""

    at: int  # the index of the predicted token that should come next
    agreed: int  # tokens before it that the answer has too; 0: the place is lost
    last: int  # the index at which the place was sure last


START: Final = Place(at=0, agreed=SURE, last=0)


class PredictedText:
    """The prediction and an index of its n-grams. It never changes, so a thread may make it."""

    def __init__(self, tokens: Sequence[TokenId]) -> None:
        self.tokens = tuple(tokens)
        self._ends: defaultdict[Gram, list[int]] = defaultdict(list)  # in ascending order
        for end in range(1, len(tokens) + 1):
            for n in LENGTHS:
                if n <= end:
                    self._ends[self.tokens[end - n : end]].append(end)

    def next(self, place: Place) -> TokenId | None:
        """Return the token that should come at a place, if there is one."""
        known = place.agreed > 0 and place.at < len(self.tokens)
        return self.tokens[place.at] if known else None

    def follow(self, place: Place, text: Sequence[TokenId]) -> Place:
        """Return the place after the last token of `text`. place: the one before this token."""
        if place.agreed >= SURE and self.next(place) == text[-1]:
            return Place(place.at + 1, place.agreed + 1, place.at + 1)
        return self._find(text, place.last)

    def _find(self, text: Sequence[TokenId], last: int) -> Place:
        """Look for the longest n-gram that ends the text, first behind `last`: an answer
        leaves out more often than it goes back."""
        for n in LENGTHS:
            if ends := self._ends.get(tuple(text[-n:]) if n <= len(text) else ()):
                index = bisect_left(ends, last)
                at = ends[index] if index < len(ends) else ends[-1]
                return Place(at, n, at if n >= SURE else last)
        return Place(last, 0, last)


class Prediction:
    """A Proposer for one answer. other: what proposes where the prediction does not."""

    def __init__(self, predicted: PredictedText, other: Proposer | None) -> None:
        self._predicted = predicted
        self._other = other
        self._text: list[TokenId] = []  # the committed tokens and the chain
        self._places = [START]  # for each position, up to the next one
        self._precision = {agreed: Precision(*prior) for agreed, prior in PRIORS.items()}
        self._committed = 0
        self._reading = ReadingTime()
        self._open: set[int] = set()  # indices of the predicted tokens that were proposed
        self._accepted: set[int] = set()  # of those, the ones that are in the text

    @property
    def accepted_tokens(self) -> int:
        """The predicted tokens that were proposed and are in the text, each counted once."""
        return len(self._accepted)

    @property
    def rejected_tokens(self) -> int:
        """The predicted tokens that were proposed and are not in the text."""
        return len(self._open)

    def follow(self, committed: Sequence[TokenId], chain: Sequence[DraftToken]) -> None:
        for position in range(self._committed, len(committed)):
            self._commit(position, committed[position])
        self._committed = len(committed)
        for drafted in chain[len(self._text) - self._committed :]:
            self._append(drafted.token)
        if self._other is not None:
            self._other.follow(committed, chain)

    def propose(self, latencies: Latencies) -> DraftToken | None:
        place = self._places[-1]
        confidence = self._right(place).right
        if (token := self._predicted.next(place)) is None or confidence < MIN_CONFIDENCE:
            return None if self._other is None else self._other.propose(latencies)
        if place.at not in self._accepted:
            self._open.add(place.at)
        return DraftToken(token, confidence, origin="prediction")

    def ahead(self, latencies: Latencies) -> list[TokenId]:
        """Prefer what the other one reads: where the prediction is mostly right, it is proposed
        unread, and a token or two of a wrong one agree almost anywhere."""
        if self._other is not None and (others := self._other.ahead(latencies)):
            return others
        if (place := self._places[-1]).agreed < SURE:
            return []
        read_s = self._reading.of(latencies)
        count = ahead_size(self._right(place).right, latencies, read_s=read_s)
        return list(self._predicted.tokens[place.at : place.at + count])

    def observe_reading(self, more: int, took_s: float, draft_s: float) -> None:
        self._reading.observe(more, took_s, draft_s)
        if self._other is not None:
            self._other.observe_reading(more, took_s, draft_s)

    def _right(self, place: Place) -> Precision:
        return self._precision[max(agreed for agreed in PRIORS if agreed <= place.agreed)]

    def _commit(self, position: int, token: TokenId) -> None:
        place = self._places[position]
        expected = self._predicted.next(place)
        if expected is not None and place != START:  # words before a prediction are common
            self._right(place).observe(expected == token)
        if self._text[position : position + 1] != [token]:
            del self._text[position:], self._places[position + 1 :]
            self._append(token)
        self._count(self._places[position + 1])

    def _count(self, place: Place) -> None:
        """Count the tokens before a sure place, which agreed before it was sure, too."""
        if place.agreed >= SURE:
            agreed = range(place.at - min(place.agreed, max(LENGTHS)), place.at)
            found = self._open.intersection(agreed)
            self._open -= found
            self._accepted |= found

    def _append(self, token: TokenId) -> None:
        self._text.append(token)
        self._places.append(self._predicted.follow(self._places[-1], self._text))
