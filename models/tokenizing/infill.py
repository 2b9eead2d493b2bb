"""Prompts that ask a model for the text between a prefix and a suffix.

Models that can do this were trained with markers of their own, which are found by their
spelling. A vocabulary that has them all is taken for one of such a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Final

from picospec.models.vocabulary import Vocabulary


class Hole(Enum):
    """A place for text."""

    PREFIX = auto()
    SUFFIX = auto()


_FORMATS: Final[Sequence[Sequence[str | Hole]]] = (
    ("<|fim_prefix|>", Hole.PREFIX, "<|fim_suffix|>", Hole.SUFFIX, "<|fim_middle|>"),
    ("<fim_prefix>", Hole.PREFIX, "<fim_suffix>", Hole.SUFFIX, "<fim_middle>"),
    ("<fim-prefix>", Hole.PREFIX, "<fim-suffix>", Hole.SUFFIX, "<fim-middle>"),
    ("<｜fim▁begin｜>", Hole.PREFIX, "<｜fim▁hole｜>", Hole.SUFFIX, "<｜fim▁end｜>"),  # noqa: RUF001
    ("▁<PRE>", Hole.PREFIX, "▁<SUF>", Hole.SUFFIX, "▁<MID>"),
    (" <PRE>", Hole.PREFIX, " <SUF>", Hole.SUFFIX, " <MID>"),  # as llama.cpp spells them
    ("[SUFFIX]", Hole.SUFFIX, "[PREFIX]", Hole.PREFIX),
)
"""The formats of Qwen and CodeGemma, StarCoder and Granite, SantaCoder, DeepSeek, CodeLlama
(twice) and Codestral, each from its model's documentation."""


def infill_format(vocabulary: Vocabulary) -> Sequence[int | Hole] | None:
    """Return the markers as token ids, with the holes between; None if the model has none."""
    wanted = {part.encode() for each in _FORMATS for part in each if isinstance(part, str)}
    ids = {piece: token for token, piece in enumerate(vocabulary.pieces) if piece in wanted}
    for each in _FORMATS:
        if all(isinstance(part, Hole) or part.encode() in ids for part in each):
            return [part if isinstance(part, Hole) else ids[part.encode()] for part in each]
    return None
