"""The vocabulary of a model: each token's bytes, and whether it is special or ends a turn."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

Relation = Literal["identical", "padded", "different"]
"""The possible relations of two vocabularies; see `relate`."""

_MAX_MARKER_BYTES: Final = 256


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model, indexed by id. V: the number of tokens, without padding."""

    pieces: tuple[bytes, ...]
    """The bytes of every token: [V]. A special token's bytes are its spelling."""

    special: frozenset[int]
    """The tokens that are markers, such as <|im_end|>, instead of text."""

    stop_tokens: frozenset[int]
    """The tokens that end a turn."""

    eos: int | None = None
    """The token that ends a text; it is one of `stop_tokens`."""

    padding: int = 0
    """The number of ids from V on, which have logits but are not tokens."""

    def piece(self, token: int, special: bool = False) -> bytes:
        """Return a token's bytes. They are b"" for an id that is not a token, and for a special
        token unless `special` is set."""
        if token >= len(self.pieces) or (token in self.special and not special):
            return b""
        return self.pieces[token]

    def is_special(self, token: int) -> bool:
        return token in self.special

    @cached_property
    def digest(self) -> str:
        """16 hex digits. Vocabularies with equal digests have equal pieces."""
        digest = hashlib.blake2b(digest_size=8)
        for piece in self.pieces:
            digest.update(len(piece).to_bytes(4, "little") + piece)
        return digest.hexdigest()

    @cached_property
    def markers(self) -> dict[str, int]:
        """Maps the spellings of the special tokens to their ids."""
        spelt = ((token, self.pieces[token]) for token in sorted(self.special))
        return {
            piece.decode("utf-8", "replace"): token
            for token, piece in spelt
            if 0 < len(piece) <= _MAX_MARKER_BYTES
        }


def relate(target: Vocabulary, draft: Vocabulary) -> Relation:
    """Return whether ids mean the same in both models, compared token by token.

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
