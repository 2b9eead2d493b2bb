"""The distinct tokens of a text, with how often the answer has each, for penalties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from picospec.speculation.protocol.messages import TokenId
from picospec.speculation.sampling.distributions import Logits
from picospec.speculation.sampling.noise import Tokens

FEW: Final = 32
"""Up to so many tokens are added one by one. A token takes about 10 us, and sorting the whole
text takes from 300 us on, by the length of it."""


@dataclass(frozen=True, slots=True, eq=False)
class SeenTokens:
    """It never changes, so that each row of a pass can have its own, with the draft tokens
    before it. A token more costs a copy of an array, which takes microseconds."""

    tokens: Tokens  # int64[n], each once
    counts: Logits  # float32[n]; 0 for tokens that only the prompt has

    @staticmethod
    def of(prompt: Sequence[TokenId]) -> SeenTokens:
        tokens = np.unique(np.asarray(prompt, np.int64))
        return SeenTokens(tokens, np.zeros(len(tokens), np.float32))

    def after(self, output: Sequence[TokenId]) -> SeenTokens:
        """Return what the text has with these output tokens more."""
        if len(output) > FEW:
            return self._counted(np.asarray(output, np.int64))
        seen = self
        for token in output:
            seen = seen._then(token)
        return seen

    def _counted(self, output: Tokens) -> SeenTokens:
        tokens, places = np.unique(np.concatenate([self.tokens, output]), return_inverse=True)
        more = np.concatenate([self.counts, np.ones(len(output), np.float32)])
        return SeenTokens(tokens, np.bincount(places, weights=more).astype(np.float32))

    def _then(self, token: TokenId) -> SeenTokens:
        found = np.flatnonzero(self.tokens == token)
        if not found.size:
            tokens = np.append(self.tokens, np.int64(token))
            return SeenTokens(tokens, np.append(self.counts, np.float32(1.0)))
        counts = self.counts.copy()
        counts[found] += np.float32(1.0)
        return SeenTokens(self.tokens, counts)
