"""What each token id means: its bytes, and whether it is text, a marker, or the end of a turn.

llama.cpp makes special tokens of some that the file calls text, by their look (Qwen's "</s>").
Those carry both attributes; they are text here: they are shown, and they stop nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Final

# llama.cpp's llama_token_attr
_UNKNOWN: Final = 1 << 0
_NORMAL: Final = 1 << 2
_CONTROL: Final = 1 << 3


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model, by id. pieces, attributes: [V]."""

    pieces: tuple[bytes, ...]
    """Bytes of every token, special ones rendered as their text."""

    attributes: tuple[int, ...]
    ends: frozenset[int]
    """Tokens that llama.cpp takes for the end of a generation."""

    eos: int

    def piece(self, token: int, special: bool = False) -> bytes:
        """Return a token's bytes; a special token's are b"" unless `special` asks for them."""
        return self.pieces[token] if special or not self.is_special(token) else b""

    def is_special(self, token: int) -> bool:
        """Tell whether a token is a marker such as <|im_end|>, not text."""
        attributes = self.attributes[token]
        return bool(attributes & (_CONTROL | _UNKNOWN)) and not attributes & _NORMAL

    @cached_property
    def markers(self) -> dict[str, int]:
        """Texts of the special tokens, with their ids."""
        special = (token for token in range(len(self.pieces)) if self.is_special(token))
        return {self.pieces[t].decode("utf-8", "replace"): t for t in special if self.pieces[t]}

    @cached_property
    def stop_tokens(self) -> frozenset[int]:
        """The tokens that end a turn."""
        return frozenset(t for t in self.ends if t == self.eos or self.is_special(t))

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits over all tokens' bytes and attributes, in order.

        Models with equal fingerprints mean the same by every token id.
        """
        digest = hashlib.sha256()
        for piece, attributes in zip(self.pieces, self.attributes, strict=True):
            digest.update(len(piece).to_bytes(4, "little") + piece)
            digest.update(attributes.to_bytes(4, "little"))
        return digest.hexdigest()[:32]
