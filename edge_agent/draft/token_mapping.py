"""Tokens, and the draft model's distribution over them, are mapped between the draft model's
vocabulary and the target's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Final

import numpy as np

from edge_agent.draft.retokeniser import Retokeniser
from local_models.tokenizer import Encoder, Tokenizer, beginning
from local_models.vocabulary import Vocabulary
from speculation.distributions import Logits
from speculation.model_facts import TokenId

_UNREACHABLE: Final = 1e-300
"""The weight of a target token that begins no token of the draft model, where the likeliest one
has 1: it is drawn only if a mask leaves nothing else."""


class Projection:
    """The draft model's distribution over the target's tokens. Each token of the draft model
    counts for the target token that its text begins with. So the masks and penalties of a
    request, which use target ids, apply unchanged; and a token that both vocabularies have is
    drawn with the same noise at both ends.

    special: maps special tokens of the draft model to the target's; those without one are never
    drawn.
    """

    def __init__(
        self, draft: Vocabulary, target: Retokeniser, special: Mapping[int, TokenId]
    ) -> None:
        size = self._size = len(target.vocabulary.pieces)

        def first(token: int, piece: bytes) -> int:
            if token in draft.special:
                return special.get(token, size)
            prefix = target.longest_prefix(piece)
            return size if prefix is None else prefix

        self._first = np.array([first(*each) for each in enumerate(draft.pieces)], np.int64)
        """The target token for which each token of the draft model counts; the number of target
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


class Translation:
    """Serves one target and one draft model. Making it takes a second, so sessions share it."""

    def __init__(self, target: Tokenizer, draft: Encoder) -> None:
        alone = partial(target.encode, special=False, begin=False)
        self.target = Retokeniser(target.vocabulary, alone)
        self.draft = Retokeniser(draft.vocabulary, lambda text: draft.tokenize(text, False))
        self.to_target = special_tokens(draft.vocabulary, target.vocabulary)
        self.projection = Projection(draft.vocabulary, self.target, self.to_target)
        self._to_draft = special_tokens(target.vocabulary, draft.vocabulary)
        self._begins = draft.raw_beginning

    def prompt(self, tokens: Sequence[TokenId]) -> list[int]:
        """Return the draft model's tokens for a prompt in the target's. Special tokens that the
        draft model lacks are spelt out, except for a leading one, which has no content."""
        if tokens and self._is_lacking(tokens[0]):
            tokens = tokens[1:]
        draft_tokens = list[int]()
        for token, run in groupby(tokens, self._to_draft.get):
            if token is None:
                draft_tokens += self.draft.tokenise(self.target.bytes_of(run))
            else:
                draft_tokens += [token for _ in run]
        return beginning(self._begins, draft_tokens)

    def _is_lacking(self, token: TokenId) -> bool:
        return token in self.target.vocabulary.special and token not in self._to_draft


def special_tokens(source: Vocabulary, into: Vocabulary) -> dict[int, int]:
    """Map the special tokens of one vocabulary to those of another: by the same spelling, or
    else as the end of a turn."""
    same = {
        token: into.markers[text]
        for text, token in source.markers.items()
        if text in into.markers
    }
    ends = dict.fromkeys(source.stop_tokens, into.eos)
    return {token: end for token, end in ends.items() if end is not None} | same
