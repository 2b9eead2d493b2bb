"""Draft tokens from earlier answers: people ask the same, or nearly the same, again.

A PastAnswers keeps what one owner was answered, and nobody else gets it. An answer to the same
prompt is followed from its first token on; any other is found again by the n-grams that end the
text. What came next there is proposed unread, where it is likelier to be right than what else
would be proposed. The draft model does not read it ahead: where it agrees, it needs no help.

A token that is kept takes about 300 bytes, and two microseconds of processor time; one of an
answer that looks here takes another three. None of this is for several threads at once.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import inf
from typing import Final
from weakref import WeakKeyDictionary

from speculation.proposing.latencies import Latencies
from speculation.proposing.precision import Precision
from speculation.proposing.prompt_lookup import RISK_MARGIN, PromptLookup, ReadingTime
from speculation.protocol.messages import TokenId
from speculation.sampling.draft_token import DraftToken

PRIORS: Final = {16: (0.98, 8), 8: (0.9, 2), 3: (0.5, 4)}
"""By the tokens that agreed before it, most first: how often a token is right, and the number
of tokens that this counts as. A prior; all answers of one PastAnswers correct it together."""

SAME_PROMPT: Final = 8
"""Agreed tokens that an equal prompt counts as."""

DRAFT_PRIOR: Final = (0.9, 4)
"""How often the draft model is right, and the number of its tokens that this counts as."""


class _Page:
    """Answers in a row, and the index of the token that followed each n-gram last."""

    def __init__(self) -> None:
        self.tokens = array("I")
        self._after: dict[int, int] = {}  # by the hash of an n-gram, which takes less memory
        self._starts: dict[int, int] = {}  # of answers, by the hash of the prompt

    def begin(self, prompt: tuple[TokenId, ...]) -> None:
        self._starts[hash(prompt)] = len(self.tokens)

    def append(self, token: TokenId) -> None:
        at = len(self.tokens)
        for n in PRIORS:
            if n <= at:
                self._after[hash(tuple(self.tokens[at - n :]))] = at
        self.tokens.append(token)

    def start(self, prompt: tuple[TokenId, ...]) -> Place | None:
        at = self._starts.get(hash(prompt), inf)
        return Place(self, int(at), SAME_PROMPT) if at < len(self.tokens) else None

    def find(self, gram: tuple[TokenId, ...]) -> Place | None:
        at = self._after.get(hash(gram))
        if at is None or tuple(self.tokens[at - len(gram) : at]) != gram:
            return None
        return Place(self, at, len(gram))


@dataclass(frozen=True, slots=True)
class Place:
    """Where an answer is in an earlier one."""

    page: _Page
    at: int  # the index of the token that should come next
    agreed: int  # tokens before it that both have

    @property
    def token(self) -> TokenId:
        return self.page.tokens[self.at]

    def after(self, token: TokenId) -> Place | None:
        """Return the place after `token`, if that is what should come."""
        goes_on = token == self.token and self.at + 1 < len(self.page.tokens)
        return Place(self.page, self.at + 1, self.agreed + 1) if goes_on else None


class PastAnswers:
    """most_tokens: of the answers kept; the older half leaves when there are more."""

    def __init__(self, most_tokens: int) -> None:
        self.drafted = Precision(*DRAFT_PRIOR)
        """How often the draft model is right in these answers."""

        self._precision = {agreed: Precision(*prior) for agreed, prior in PRIORS.items()}
        self._page_tokens = max(1, most_tokens // 2)
        self._pages = (_Page(), _Page())  # the newer one first

    def add(self, prompt: tuple[TokenId, ...], answer: Sequence[TokenId]) -> None:
        """Keep an answer, whole or as far as it came."""
        self._pages[0].begin(prompt)
        for token in answer:
            if len(self._pages[0].tokens) >= self._page_tokens:
                self._pages = (_Page(), self._pages[0])
            self._pages[0].append(token)

    def start(self, prompt: tuple[TokenId, ...]) -> Place | None:
        """Return where the last answer to this prompt begins."""
        return next(filter(None, (page.start(prompt) for page in self._pages)), None)

    def find(self, text: Sequence[TokenId]) -> Place | None:
        """Return the place after the last occurrence of the longest n-gram that ends a text."""
        grams = (tuple(text[-n:]) for n in PRIORS if n <= len(text))
        found = (page.find(gram) for gram, page in product(grams, self._pages))
        return next(filter(None, found), None)

    def right(self, place: Place) -> Precision:
        """Return how often the tokens of such places are right."""
        return self._precision[max(agreed for agreed in PRIORS if agreed <= place.agreed)]


class PastAnswersByOwner:
    """An owner is the object that stands for whoever asks, such as the holder of a key. What is
    kept for it is gone when it is, and when the target's vocabulary is another one.

    most_tokens: kept for each owner; 0: nothing is.
    """

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._kept: WeakKeyDictionary[object, tuple[str, PastAnswers]] = WeakKeyDictionary()

    def of(self, owner: object | None, vocabulary: str) -> PastAnswers | None:
        """Return an owner's; None where nothing is kept, as for nobody in particular."""
        if owner is None or not self._most_tokens:
            return None
        kept = self._kept.get(owner)
        if kept is None or kept[0] != vocabulary:
            kept = self._kept[owner] = vocabulary, PastAnswers(self._most_tokens)
        return kept[1]


def is_worth(right: float, drafted: float, latencies: Latencies, *, read_s: float) -> bool:
    """Return whether a token is worth more than one of the draft model's.

    right, drafted: how likely either is right. read_s: see prompt_lookup.is_worth_unread. The
    token saves a draft step less the time of reading it. It loses a round trip and a pass as
    much more often than the draft model's as it is wrong more often; before the first pass
    nobody knows how long that is.
    """
    if latencies.draft_s == inf:
        return True
    if latencies.pass_s == 0.0:
        return right >= drafted
    lost_s = (drafted - right) * (latencies.rtt_s + latencies.pass_s)
    return RISK_MARGIN * lost_s <= latencies.draft_s - read_s


class Recall:
    """A Proposer for one answer. other: what proposes where past answers do not."""

    def __init__(
        self, past: PastAnswers, prompt: tuple[TokenId, ...], other: PromptLookup | None
    ) -> None:
        self._past = past
        self._other = other
        self._text: list[TokenId] = []  # the committed tokens and the chain
        self._drafted: list[bool] = []  # of each, whether the draft model drafted it
        self._places = [past.start(prompt)]  # for each position, up to the next one
        self._committed = 0
        self._reading = ReadingTime()

    def follow(self, committed: Sequence[TokenId], chain: Sequence[DraftToken]) -> None:
        for position in range(self._committed, len(committed)):
            self._commit(position, committed[position])
        self._committed = len(committed)
        for each in chain[len(self._text) - self._committed :]:
            self._append(each.token, drafted=each.origin in ("draft", "ahead"))
        if self._other is not None:
            self._other.follow(committed, chain)

    def propose(self, latencies: Latencies) -> DraftToken | None:
        if (place := self._places[-1]) is not None:
            right, drafted = self._past.right(place).right, self._past.drafted.right
            own = 0.0 if self._other is None else self._other.right
            read_s = self._reading.of(latencies)
            if right > own and is_worth(right, drafted, latencies, read_s=read_s):
                return DraftToken(place.token, right, origin="past")
        return None if self._other is None else self._other.propose(latencies)

    def ahead(self, latencies: Latencies) -> list[TokenId]:
        return [] if self._other is None else self._other.ahead(latencies)

    def observe_reading(self, more: int, took_s: float, draft_s: float) -> None:
        self._reading.observe(more, took_s, draft_s)
        if self._other is not None:
            self._other.observe_reading(more, took_s, draft_s)

    def _commit(self, position: int, token: TokenId) -> None:
        if (place := self._places[position]) is not None:
            self._past.right(place).observe(place.token == token)
        agrees = self._text[position : position + 1] == [token]
        if any(self._drafted[position : position + 1]):
            self._past.drafted.observe(agrees)
        if not agrees:
            del self._text[position:], self._drafted[position:], self._places[position + 1 :]
            self._append(token, drafted=False)

    def _append(self, token: TokenId, *, drafted: bool) -> None:
        self._text.append(token)
        self._drafted.append(drafted)
        place = self._places[-1] and self._places[-1].after(token)
        self._places.append(place or self._past.find(self._text[-max(PRIORS) :]))
