"""A small vocabulary with every byte and some longer tokens, and a tokenizer that is greedy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from picospec.models.grammars import Grammar, GrammarState, make_tokenizer
from picospec.models.tokenizer import Tokenizer
from picospec.models.vocabulary import Vocabulary

_LONGER = (
    *["ab", "ba", "aab", "bb", "abab", "true", "false", "null", "name", "value", "é", "€"],
    *('"', '":', '": "', '", "', "{", '{"', '"}', "[", "]", ", ", ": ", "  ", "\n", " \n"),
    *("12", "100", "the", "</", "em"),
)
_PIECES = tuple(
    dict.fromkeys([*(bytes([b]) for b in range(256)), *(t.encode() for t in _LONGER)])
)
STOP, TAG = len(_PIECES), len(_PIECES) + 1
VOCABULARY = Vocabulary(
    (*_PIECES, b"<|end|>", b"<|tag|>"), frozenset({STOP, TAG}), frozenset({STOP}), STOP
)
V = len(VOCABULARY.pieces)


def greedy(text: str) -> list[int]:
    """Return the tokens of a text: always the longest that fits."""
    data, tokens = text.encode(), list[int]()
    ids = {piece: token for token, piece in enumerate(VOCABULARY.pieces[:STOP])}
    while data:
        size = next(n for n in range(min(8, len(data)), 0, -1) if data[:n] in ids)
        tokens.append(ids[data[:size]])
        data = data[size:]
    return tokens


class SmallEncoder:
    vocabulary = VOCABULARY
    raw_beginning = chat_beginning = ()

    def tokenize(self, text: str, special: bool) -> list[int]:
        return greedy(text)


TOKENIZER = Tokenizer(SmallEncoder(), None)
TOKENS = make_tokenizer(VOCABULARY, greedy)


def allowed(state: GrammarState, output: Sequence[int]) -> set[int]:
    """Return the tokens that may follow."""
    masked = state.mask(np.zeros(V, np.float32), output)
    return set(np.flatnonzero(masked == 0.0).tolist())


def bytes_of(output: Sequence[int]) -> bytes:
    return b"".join(VOCABULARY.piece(token) for token in output)


def generated(
    grammar: Grammar, choose: Callable[[list[int]], int], most: int = 400
) -> list[int]:
    """Return an answer of the grammar: up to its stop token, or to `most` tokens."""
    state, output = grammar.begin(), list[int]()
    while len(output) < most and output[-1:] != [STOP]:
        output.append(choose(sorted(allowed(state, output))))
    return output
