"""A tokenizer of a few pieces that takes the longest piece, as often as it can."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from picospec.models.vocabulary import Vocabulary


class WordEncoder:
    """models.tokenizing.tokenizer.Encoder. The first of the special tokens ends a turn."""

    raw_beginning: tuple[int, ...] = ()
    chat_beginning: tuple[int, ...] = ()

    def __init__(self, pieces: Sequence[bytes], special: Collection[int]) -> None:
        end = min(special)
        self.vocabulary = Vocabulary(tuple(pieces), frozenset(special), frozenset({end}), end)

    def tokenize(self, text: str, special: bool) -> list[int]:
        pieces = self.vocabulary.pieces
        tokens, rest = list[int](), text.encode()
        while rest:
            fit = [t for t, piece in enumerate(pieces) if rest.startswith(piece)]
            if not fit:
                break
            tokens.append(max(fit, key=lambda token: len(pieces[token])))
            rest = rest[len(pieces[tokens[-1]]) :]
        return tokens
