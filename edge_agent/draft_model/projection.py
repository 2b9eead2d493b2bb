"""The draft model's distribution over the tokens of another vocabulary, the target's.

A draft token counts for the target token that its text begins with. So the target's noise,
masks and penalties apply as they are, and where both vocabularies have a token, both ends draw
it with the same noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from edge_agent.draft_model.retokeniser import Retokeniser
from models.vocabulary import Vocabulary
from speculation.protocol.messages import TokenId
from speculation.sampling.distributions import Logits

_UNREACHABLE: Final = 1e-300
"""Weight of a target token that begins no draft token: it is drawn only if a mask leaves
nothing else."""


class Projection:
    """special: what special draft tokens are in the target's vocabulary; those that are not in
    it are never drawn."""

    def __init__(
        self, draft: Vocabulary, target: Retokeniser, size: int, special: Mapping[int, TokenId]
    ) -> None:
        def begins_with(token: int) -> int:
            if draft.is_special(token):
                return special.get(token, size)
            found = target.prefix(draft.pieces[token])
            return size if found is None else found

        self._size = size
        self._first = np.array([begins_with(token) for token in range(len(draft.pieces))])

    def __call__(self, logits: Logits) -> Logits:
        """Return float32[V of the target] from float32[V of the draft model]."""
        weights = np.exp(logits - logits.max(), dtype=np.float64)
        sums = np.bincount(self._first, weights, self._size + 1)[:-1]
        projected: Logits = np.log(sums + _UNREACHABLE).astype(np.float32)
        return projected

    def likeliest(self, logits: Logits, token: TokenId) -> int | None:
        """Return the likeliest draft token that counts for a target token, if there is one."""
        group = np.flatnonzero(self._first == token)
        return int(group[np.argmax(logits[group])]) if group.size else None
