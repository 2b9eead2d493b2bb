"""What was answered before: people ask the same again, and mostly get the same again.

The last answer to a prompt is sent to the verifier as a prediction when the prompt comes again.
It changes no answer, see speculation.verifying.own_drafts. Answers are kept in memory alone.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final
from weakref import WeakKeyDictionary

from picospec.speculation.protocol.messages import MAX_PREDICTED, ModelFacts, TokenId

MIN_TOKENS: Final = 64
"""A shorter answer counts as one of so many, for what keeping it takes besides its tokens. So
a token that is counted takes 4 to 8 bytes."""


class PastAnswers:
    """One owner's, to one target. most_tokens: of the answers kept; when there are more, those
    that were given longest ago leave. vocabulary_size: an answer with another token is not
    kept, for no verifier would take it as a prediction."""

    def __init__(self, most_tokens: int, vocabulary_size: int) -> None:
        self._most_tokens = most_tokens
        self._vocabulary_size = vocabulary_size
        self._tokens = 0
        self._answers: OrderedDict[int, array[int]] = OrderedDict()  # by the prompts' hashes

    def add(self, prompt: tuple[TokenId, ...], answer: Sequence[TokenId]) -> None:
        """Keep an answer, whole or as far as it came, in place of the one before; of two that
        begin alike keep the longer."""
        if not answer or max(answer) >= self._vocabulary_size:
            return
        key, kept = hash(prompt), array("I", answer[:MAX_PREDICTED])
        if (old := self._answers.pop(key, None)) is not None:
            self._tokens -= _size(old)
            kept = old if old[: len(kept)] == kept else kept
        self._answers[key] = kept
        self._tokens += _size(kept)
        while self._tokens > self._most_tokens:
            _, oldest = self._answers.popitem(last=False)
            self._tokens -= _size(oldest)

    def to(self, prompt: tuple[TokenId, ...]) -> tuple[TokenId, ...]:
        """Return the last answer to a prompt; empty if there is none."""
        return tuple(self._answers.get(hash(prompt), ()))


def _size(answer: Sequence[TokenId]) -> int:
    return max(MIN_TOKENS, len(answer))


class PastAnswersByOwner:
    """An owner is the object that stands for whoever asks, such as the holder of a key. What is
    kept for one is gone when the owner is, and when the target has another vocabulary.

    most_tokens: kept for each owner; at 0 nothing is.
    """

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._kept: WeakKeyDictionary[object, tuple[str, PastAnswers]] = WeakKeyDictionary()

    def of(self, owner: object | None, target: ModelFacts) -> PastAnswers | None:
        """Return an owner's; None where nothing is kept, as for nobody in particular."""
        if owner is None or not self._most_tokens:
            return None
        kept = self._kept.get(owner)
        if kept is None or kept[0] != target.vocabulary:
            past = PastAnswers(self._most_tokens, target.vocabulary_size)
            kept = self._kept[owner] = target.vocabulary, past
        return kept[1]
