"""The running mean by which both ends learn, and the precision of continuations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from picospec.speculation.protocol.messages import TokenId

WEIGHT: Final = 0.25
"""The latest observation has this weight."""

MIN_WEIGHT: Final = 1 / 32
"""The latest observation has at least this weight, so the estimate follows the text."""


def smoothed(old: float | None, latest: float, weight: float = WEIGHT) -> float:
    """Return the running mean after one more observation. old: None before the first."""
    return latest if old is None else old + weight * (latest - old)


@dataclass(slots=True)
class Precision:
    """How often the tokens of one kind are right: a running mean that starts at a prior."""

    right: float
    seen: int

    def observe(self, right: bool) -> None:
        self.seen += 1
        self.right = smoothed(self.right, right, max(MIN_WEIGHT, 1 / self.seen))


@dataclass(frozen=True, slots=True)
class Continuation:
    """Tokens that may come next. Each is right with probability `precision` if those before it
    are."""

    tokens: Sequence[TokenId]
    precision: Precision
