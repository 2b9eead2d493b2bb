"""What it takes to go from the target's vocabulary to the draft model's and back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby

from picospec.edge_agent.draft_model.foreign.projection import Projection
from picospec.edge_agent.draft_model.foreign.retokeniser import Retokeniser
from picospec.models.tokenizing.tokenizer import Encoder, Tokenizer
from picospec.models.vocabulary import Vocabulary
from picospec.speculation.protocol.messages import TokenId


class Translation:
    """One target and one draft model. It takes about a second to make, so sessions share it."""

    def __init__(self, target: Tokenizer, draft: Encoder) -> None:
        alone = partial(target.encode, special=False, begin=False)
        self.target = Retokeniser(target.vocabulary, alone)
        self.draft = Retokeniser(draft.vocabulary, lambda text: draft.tokenize(text, False))
        self.to_target = special_tokens(draft.vocabulary, target.vocabulary)
        self.projection = Projection(draft.vocabulary, self.target, self.to_target)
        self._to_draft = special_tokens(target.vocabulary, draft.vocabulary)
        self._begins = draft.begins_raw

    def prompt(self, tokens: Sequence[TokenId]) -> list[int]:
        """Return the draft model's tokens for a prompt of the target's. Special tokens that the
        draft model lacks are spelt, except one that begins the prompt and says nothing."""
        if tokens and self._is_lacking(tokens[0]):
            tokens = tokens[1:]
        found = list[int]()
        for token, run in groupby(tokens, self._to_draft.get):
            if token is None:
                found += self.draft.tokenise(self.target.bytes_of(run))
            else:
                found += [token for _ in run]
        begins = self._begins
        return found if tuple(found[: len(begins)]) == begins else [*begins, *found]

    def _is_lacking(self, token: TokenId) -> bool:
        return self.target.vocabulary.is_special(token) and token not in self._to_draft


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
