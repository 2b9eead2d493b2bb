"""What it takes to go from the target's vocabulary to the draft model's and back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

from edge_agent.draft_model.projection import Projection
from edge_agent.draft_model.retokeniser import Retokeniser
from models.vocabulary import Vocabulary
from speculation.protocol.messages import TokenId


class Encoder(Protocol):
    """What is needed of a model's tokenizer; see models.tokenizer.Encoder."""

    @property
    def vocabulary(self) -> Vocabulary: ...
    def tokenize(self, text: str, special: bool) -> list[int]: ...


class DraftEncoder(Encoder, Protocol):
    @property
    def begins_raw(self) -> tuple[int, ...]: ...


class Translation:
    """One target and one draft model. It takes about a second to make, so sessions share it."""

    def __init__(self, target: Encoder, draft: DraftEncoder) -> None:
        self.target = Retokeniser(target.vocabulary, lambda text: target.tokenize(text, False))
        self.draft = Retokeniser(draft.vocabulary, lambda text: draft.tokenize(text, False))
        self.to_target = special_tokens(draft.vocabulary, target.vocabulary)
        self.projection = Projection(draft.vocabulary, self.target, self.to_target)
        self._to_draft = special_tokens(target.vocabulary, draft.vocabulary)
        self._begins = draft.begins_raw

    def prompt(self, tokens: Sequence[TokenId]) -> list[int]:
        """Return the draft model's tokens for a prompt of the target's."""
        found = list(self._begins)
        for token, run in groupby(tokens, self._to_draft.get):
            if token is None:
                found += self.draft.tokenise(self.target.bytes_of(run))
            else:
                found += [token] * len(list(run))
        return found


def special_tokens(source: Vocabulary, into: Vocabulary) -> dict[int, int]:
    """Return the special tokens of one vocabulary that another one has too: with the same
    spelling, or else for the end of a turn."""
    same = {
        token: into.markers[text]
        for text, token in source.markers.items()
        if text in into.markers
    }
    ends = dict.fromkeys(source.stop_tokens, into.eos)
    return {token: end for token, end in ends.items() if end is not None} | same
