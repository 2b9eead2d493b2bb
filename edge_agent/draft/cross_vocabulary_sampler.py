"""Draws the tokens of a draft model that has another vocabulary than the target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np

from edge_agent.draft.drafter import StepSampler
from edge_agent.draft.token_mapping import Translation
from speculation.distributions import Logits
from speculation.draft_token import DraftToken
from speculation.model_facts import TokenId

MAX_DRAWS: Final = 4
"""At most this many tokens are drawn for a row to find one that fits the target's text."""


@dataclass(frozen=True, slots=True)
class Row:
    """The place of a row of the draft model's logits in the target's text."""

    output: list[TokenId]
    """The target's tokens of all text before the token that the row draws."""

    required: bytes
    """Text that is known to follow: only tokens that agree with it can be drawn."""

    preceding: Sequence[TokenId]
    """The target's last tokens; empty if the draft model has written beyond them."""


@dataclass(frozen=True, slots=True)
class CrossVocabularySampler:
    """A DraftSampler in the draft model's ids, made from a StepSampler in the target's ids.

    first: the position of the first row.
    """

    translation: Translation
    sampler: StepSampler
    rows: Sequence[Row]
    first: int

    def __call__(self, logits: Logits, position: int) -> DraftToken:
        logits = logits[: len(self.translation.draft.vocabulary.pieces)]  # the rest is padding
        row = self.rows[position - self.first]
        draws = self._agreeing(logits, row) if row.required else self._free(logits, row)
        drawn = list[DraftToken]()
        for each in islice(draws, MAX_DRAWS):
            if self._fits(each.token, row):
                return each
            drawn.append(each)
        return drawn[0] if drawn else DraftToken(int(np.argmax(logits)), 0.0)

    def _free(self, logits: Logits, row: Row) -> Iterator[DraftToken]:
        """Draw target tokens, each time without those drawn before, and yield the draft model's
        likeliest token for each."""
        projection = self.translation.projection
        projected, draw = projection(logits), self.sampler(row.output)
        while True:
            drafted = draw(projected, len(row.output))
            own = projection.likeliest(logits, drafted.token)
            yield DraftToken(int(np.argmax(logits)) if own is None else own, drafted.confidence)
            projected[drafted.token] = -np.inf

    def _agreeing(self, logits: Logits, row: Row) -> Iterator[DraftToken]:
        """Yield the tokens that agree with the required text, the likeliest first."""
        tokens = self.translation.draft.compatible(row.required)
        weights = np.exp(logits[tokens] - logits[tokens].max(initial=-np.inf))
        for index in np.argsort(-weights):
            yield DraftToken(int(tokens[index]), float(weights[index] / weights.sum()))

    def _fits(self, token: int, row: Row) -> bool:
        """Return True if the target's text can go on with a token of the draft model: the
        target's tokenizer must not merge the new text into the target's last token."""
        beyond = self.translation.draft.vocabulary.piece(token)[len(row.required) :]
        if not (row.preceding and beyond):
            return True
        return self.translation.target.can_continue(row.preceding, beyond)
