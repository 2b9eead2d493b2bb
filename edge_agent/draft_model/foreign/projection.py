"""The draft model's distribution over the target's tokens, where the vocabularies differ.

A draft model's token counts for the target token that its text begins with. So the masks and
penalties of a request, which are in target ids, apply as they are; and a token that both
vocabularies have is drawn with the same noise at both ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from picospec.edge_agent.draft_model.foreign.retokeniser import Retokeniser
from picospec.models.vocabulary import Vocabulary
from picospec.speculation.protocol.messages import TokenId
from picospec.speculation.sampling.distributions import Logits

_UNREACHABLE: Final = 1e-300
"""The weight of a target token that begins no token of the draft model, beside 1 for the
likeliest: it is drawn only where a mask leaves nothing else."""


class Projection:
    """special: the target's tokens for special tokens of the draft model; special tokens
    without one are never drawn."""

    def __init__(
        self, draft: Vocabulary, target: Retokeniser, special: Mapping[int, TokenId]
    ) -> None:
        size = self._size = len(target.vocabulary.pieces)

        def first(token: int, piece: bytes) -> int:
            if draft.is_special(token):
                return special.get(token, size)
            found = target.longest_prefix(piece)
            return size if found is None else found

        self._first = np.array([first(*each) for each in enumerate(draft.pieces)], np.int64)
        """Each token of the draft model counts for this target token; the number of target
        tokens stands for none."""

    def __call__(self, logits: Logits) -> Logits:
        """Return float32[V of the target] from float32[V of the draft model]."""
        weights = np.exp(logits - logits.max(), dtype=np.float64)
        sums = np.bincount(self._first, weights, self._size + 1)[:-1]
        projected: Logits = np.log(sums + _UNREACHABLE).astype(np.float32)
        return projected

    def likeliest(self, logits: Logits, token: TokenId) -> int | None:
        """Return the draft model's likeliest token that counts for a target token, if any."""
        group = np.flatnonzero(self._first == token)
        return int(group[np.argmax(logits[group])]) if group.size else None
