"""What a pass is asked to decode: segments of rows, and what makes them honest.

A row is one token at one position of one sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.errors import BadSegment, NoRoom


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows of one sequence, in order: `tokens` at the positions from `start` on."""

    sequence: int
    start: int
    """The sequence's length: what is decoded stays, and gaps are refused."""

    tokens: Sequence[int]
    logits: int | None = None
    """Of how many of the last rows they are wanted; None: of all."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a Context can hold and take."""

    sequences: int
    context_tokens: int
    """Of each sequence."""

    batch_tokens: int
    """Rows of one pass."""

    vocabulary_size: int


def check(segments: Sequence[Segment], limits: Limits, length: Callable[[int], int]) -> None:
    """Raise BadSegment or NoRoom unless the segments can be decoded. length: of a sequence."""
    rows = sum(len(segment.tokens) for segment in segments)
    if not 0 < rows <= limits.batch_tokens:
        raise BadSegment(f"{rows} rows, not 1..{limits.batch_tokens}")
    if len({segment.sequence for segment in segments}) < len(segments):
        raise BadSegment("two segments of one sequence")
    for segment in segments:
        _check_one(segment, limits, length)


def _check_one(segment: Segment, limits: Limits, length: Callable[[int], int]) -> None:
    name = f"sequence {segment.sequence}"
    if not 0 <= segment.sequence < limits.sequences:
        raise BadSegment(f"{name} is not in 0..{limits.sequences - 1}")
    if not segment.tokens:
        raise BadSegment(f"{name}: no tokens")
    if min(segment.tokens) < 0 or max(segment.tokens) >= limits.vocabulary_size:
        raise BadSegment(f"{name}: a token is not in 0..{limits.vocabulary_size - 1}")
    if (held := length(segment.sequence)) != segment.start:
        raise BadSegment(f"{name} holds {held} tokens; it cannot go on at {segment.start}")
    if segment.start + len(segment.tokens) > limits.context_tokens:
        raise NoRoom(f"{name} would pass {limits.context_tokens} tokens")
