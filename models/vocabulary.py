"""The meaning of each token id: its bytes, and whether it is text, special, or ends a turn."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

Relation = Literal["identical", "padded", "different"]
"""Two vocabularies are related so; see `relate`."""

_MAX_MARKER_BYTES: Final = 256


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model, indexed by id. V: their number, without padding."""

    pieces: tuple[bytes, ...]
    """The bytes of every token: [V]. Those of a special token are its spelling."""

    special: frozenset[int]
    """The tokens that are markers, such as <|im_end|>, instead of text."""

    stop_tokens: frozenset[int]
    """The tokens that end a turn."""

    eos: int | None = None
    """The token that ends a text: one of those that end a turn."""

    padding: int = 0
    """Ids from V on that the model computes logits of, and that are no tokens."""

    def piece(self, token: int, special: bool = False) -> bytes:
        """Return a token's bytes; b"" for an id that is no token and, unless `special` is set,
        for a special token."""
        if token >= len(self.pieces) or (token in self.special and not special):
            return b""
        return self.pieces[token]

    def is_special(self, token: int) -> bool:
        return token in self.special

    @cached_property
    def digest(self) -> str:
        """16 hex digits, equal where all pieces are: such vocabularies are not different."""
        digest = hashlib.blake2b(digest_size=8)
        for piece in self.pieces:
            digest.update(len(piece).to_bytes(4, "little") + piece)
        return digest.hexdigest()

    @cached_property
    def markers(self) -> dict[str, int]:
        """The spellings of the special tokens, with their ids."""
        spelt = ((token, self.pieces[token]) for token in sorted(self.special))
        return {
            piece.decode("utf-8", "replace"): token
            for token, piece in spelt
            if 0 < len(piece) <= _MAX_MARKER_BYTES
        }


def relate(target: Vocabulary, draft: Vocabulary) -> Relation:
    """Establish, token by token, whether ids mean the same in both models.

    padded: equal ids have equal pieces, and the draft model can read every id of the target,
    perhaps as one of its own padding. Ids past the target's tokens are never drawn.
    """
    shared = min(len(target.pieces), len(draft.pieces))
    if target.pieces[:shared] != draft.pieces[:shared]:
        return "different"
    if len(draft.pieces) + draft.padding < len(target.pieces):
        return "different"
    sizes = {(len(each.pieces), each.padding) for each in (target, draft)}
    return "identical" if len(sizes) == 1 else "padded"
