"""The meaning of each token id: its bytes, and whether it is text, special, or ends a turn.

llama.cpp treats some tokens as special that the file calls text, because of their spelling
(Qwen's "</s>"). They carry both attributes. Here they are text: they are shown and end nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

_UNKNOWN, _NORMAL, _CONTROL = 1 << 0, 1 << 2, 1 << 3
"""Bits of llama.cpp's llama_token_attr."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model, indexed by id. pieces, attributes: [V]."""

    pieces: tuple[bytes, ...]
    """The bytes of every token; those of a special token are its spelling."""

    attributes: tuple[int, ...]
    ends: frozenset[int]
    """The tokens at which llama.cpp ends a generation."""

    eos: int

    def piece(self, token: int, special: bool = False) -> bytes:
        """Return a token's bytes; b"" for a special token, unless `special` is set."""
        return self.pieces[token] if special or not self.is_special(token) else b""

    def is_special(self, token: int) -> bool:
        """Tell whether a token is a marker such as <|im_end|> instead of text."""
        attributes = self.attributes[token]
        return bool(attributes & (_CONTROL | _UNKNOWN)) and not attributes & _NORMAL

    @cached_property
    def markers(self) -> dict[str, int]:
        """The spellings of the special tokens, with their ids."""
        special = (token for token in range(len(self.pieces)) if self.is_special(token))
        return {self.pieces[t].decode("utf-8", "replace"): t for t in special if self.pieces[t]}

    @cached_property
    def stop_tokens(self) -> frozenset[int]:
        """The tokens that end a turn."""
        return frozenset(t for t in self.ends if t == self.eos or self.is_special(t))

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits; in models where they are equal, token ids have the same meaning."""
        digest = hashlib.sha256()
        for piece, attributes in zip(self.pieces, self.attributes, strict=True):
            digest.update(len(piece).to_bytes(4, "little") + piece)
            digest.update(attributes.to_bytes(4, "little"))
        return digest.hexdigest()[:32]
