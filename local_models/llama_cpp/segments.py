"""A pass takes its rows as segments, which must keep the rules checked here.

A row is one token at one position of one sequence of the KV cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from local_models.errors import BadSegment, NoRoom


@dataclass(frozen=True, slots=True)
class Segment:
    """A Segment has rows of one sequence: `tokens` at the positions from `start` on."""

    sequence: int
    start: int
    """This must be the sequence's length: rows can neither be decoded twice nor leave a gap."""

    tokens: Sequence[int]
    logits: int | None = None
    """Logits are computed for this many of the last rows; None: for all."""

    @property
    def logits_rows(self) -> int:
        return len(self.tokens) if self.logits is None else self.logits


@dataclass(frozen=True, slots=True)
class ContextLimits:
    """A Context limits the tokens of each sequence, and a pass to `batch_tokens` rows, of which
    `logits_rows` have logits."""

    sequences: int
    context_tokens: int
    batch_tokens: int
    vocabulary_size: int
    logits_rows: int


def check(
    segments: Sequence[Segment], limits: ContextLimits, length: Callable[[int], int]
) -> None:
    """Raise BadSegment or NoRoom unless all can be decoded. length: returns a sequence's."""
    rows = sum(len(segment.tokens) for segment in segments)
    if not 0 < rows <= limits.batch_tokens:
        raise BadSegment(f"{rows} rows, not 1..{limits.batch_tokens}")
    if (wanted := sum(segment.logits_rows for segment in segments)) > limits.logits_rows:
        raise BadSegment(f"logits of {wanted} rows, not of at most {limits.logits_rows}")
    if len({segment.sequence for segment in segments}) < len(segments):
        raise BadSegment("two segments of one sequence")
    for segment in segments:
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
