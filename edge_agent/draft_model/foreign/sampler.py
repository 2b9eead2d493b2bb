"""Draws the tokens of a draft model that has another vocabulary than the target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np

from picospec.edge_agent.draft_model.drafter import StepSampler
from picospec.edge_agent.draft_model.foreign.translation import Translation
from picospec.speculation.protocol.messages import TokenId
from picospec.speculation.sampling.distributions import Logits
from picospec.speculation.sampling.draft_token import DraftToken

MAX_DRAWS: Final = 4
"""Draws for one row until the target's text can go on with one of them."""


@dataclass(frozen=True, slots=True)
class Row:
    """Where in the target's text a row of the draft model's logits is."""

    output: list[TokenId]
    """The target's tokens of all text before the one that begins here."""

    owed: bytes
    """Text that is known to follow: only tokens that agree with it can be drawn."""

    behind: Sequence[TokenId]
    """The last tokens that the target has; none if the draft model has written more."""


@dataclass(frozen=True, slots=True)
class ForeignSampler:
    """A DraftSampler in the draft model's ids, made of a StepSampler in the target's.

    first: the position at which the first of the rows is asked for.
    """

    translation: Translation
    sampler: StepSampler
    rows: Sequence[Row]
    first: int

    def __call__(self, logits: Logits, position: int) -> DraftToken:
        logits = logits[: len(self.translation.draft.vocabulary.pieces)]  # the rest is padding
        row = self.rows[position - self.first]
        draws = self._agreeing(logits, row) if row.owed else self._free(logits, row)
        drawn = list[DraftToken]()
        for each in islice(draws, MAX_DRAWS):
            if self._fits(each.token, row):
                return each
            drawn.append(each)
        return drawn[0] if drawn else DraftToken(int(np.argmax(logits)), 0.0)

    def _free(self, logits: Logits, row: Row) -> Iterator[DraftToken]:
        """Draw target tokens, each without those before, and yield the draft model's tokens
        for them."""
        projection = self.translation.projection
        projected, draw = projection(logits), self.sampler(row.output)
        while True:
            drafted = draw(projected, len(row.output))
            own = projection.likeliest(logits, drafted.token)
            yield DraftToken(int(np.argmax(logits)) if own is None else own, drafted.confidence)
            projected[drafted.token] = -np.inf

    def _agreeing(self, logits: Logits, row: Row) -> Iterator[DraftToken]:
        """Yield the tokens that agree with what is owed, the likeliest first."""
        tokens = self.translation.draft.compatible(row.owed)
        weights = np.exp(logits[tokens] - logits[tokens].max(initial=-np.inf))
        for index in np.argsort(-weights):
            yield DraftToken(int(tokens[index]), float(weights[index] / weights.sum()))

    def _fits(self, token: int, row: Row) -> bool:
        """Return whether the target's text can go on with a token of the draft model: where it
        has ended a token, nothing follows that its tokenizer would have merged into that."""
        beyond = self.translation.draft.vocabulary.piece(token)[len(row.owed) :]
        if not (row.behind and beyond):
            return True
        return self.translation.target.goes_on(row.behind, beyond)
