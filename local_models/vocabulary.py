"""A Vocabulary has the bytes of a model's tokens, and which are special or end a turn."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Relation = Literal["identical", "padded", "different"]
"""Two vocabularies have one of these relations; see `relate`."""


@dataclass(frozen=True)
class Vocabulary:
    """A Vocabulary has the tokens of a model, by id. V: their number, without padding."""

    pieces: tuple[bytes, ...]
    """Every token has these bytes: [V]. A special token's bytes are its spelling."""

    special: frozenset[int]
    """These tokens are markers, such as <|im_end|>, instead of text."""

    stop_tokens: frozenset[int]
    eos: int | None = None
    """This token ends a text; it is one of `stop_tokens`."""

    padding: int = 0
    """This many ids from V on have logits, but are not tokens."""

    def piece(self, token: int, special: bool = False) -> bytes:
        """Return a token's bytes. They are b"" for an id that is not a token, and for a special
        token unless `special` is set."""
        if token >= len(self.pieces) or (token in self.special and not special):
            return b""
        return self.pieces[token]

    @cached_property
    def digest(self) -> str:
        """Return 16 hex digits. Vocabularies with equal digests have equal pieces."""
        digest = hashlib.blake2b(digest_size=8)
        for piece in self.pieces:
            digest.update(len(piece).to_bytes(4, "little") + piece)
        return digest.hexdigest()

    @cached_property
    def markers(self) -> dict[str, int]:
        """Return the ids of the special tokens by their spellings."""
        spelt = ((token, self.pieces[token]) for token in sorted(self.special))
        return {
            piece.decode("utf-8", "replace"): token
            for token, piece in spelt
            if 0 < len(piece) <= 256
        }


def relate(target: Vocabulary, draft: Vocabulary) -> Relation:
    """Return how the ids of both models relate, compared token by token.

    padded: equal ids have equal pieces, and the draft model can read every id of the target,
    some maybe as padding of its own. Ids past the target's tokens are never drawn.
    """
    shared = min(len(target.pieces), len(draft.pieces))
    if target.pieces[:shared] != draft.pieces[:shared]:
        return "different"
    if len(draft.pieces) + draft.padding < len(target.pieces):
        return "different"
    sizes = {(len(each.pieces), each.padding) for each in (target, draft)}
    return "identical" if len(sizes) == 1 else "padded"
