"""A model for tests that has one token a byte, and one a marker, stands for a real one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from picospec.models.vocabulary import Vocabulary

START, END, BOS = 256, 257, 258
MARKERS = ("<|im_start|>", "<|im_end|>", "<s>")


@dataclass
class ByteModel:
    """models.tokenizing.tokenizer.Encoder; its markers are the tokens from 256 on."""

    markers: tuple[str, ...] = MARKERS
    raw_beginning: tuple[int, ...] = ()

    @property
    def chat_beginning(self) -> tuple[int, ...]:
        return self.raw_beginning

    @cached_property
    def vocabulary(self) -> Vocabulary:
        pieces = (*(bytes([b]) for b in range(256)), *(m.encode() for m in self.markers))
        return Vocabulary(pieces, frozenset(range(256, len(pieces))), frozenset())

    def tokenize(self, text: str, special: bool) -> list[int]:
        if not special:
            return list(text.encode())
        parts = re.split(f"({'|'.join(map(re.escape, self.markers))})", text)
        known = self.vocabulary.markers
        return [t for p in parts for t in ([known[p]] if p in known else p.encode())]
