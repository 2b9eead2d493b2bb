"""The precision of continuations, which each end learns from what it sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from picospec.speculation.protocol.messages import TokenId
from picospec.speculation.running_mean import running_mean

MIN_WEIGHT: Final = 1 / 32
"""The latest observation has at least this weight, so the estimate follows the text."""


@dataclass(slots=True)
class Precision:
    """The share of right tokens of one kind is a running mean that starts at a prior."""

    right: float
    seen: int

    def observe(self, right: bool) -> None:
        self.seen += 1
        self.right = running_mean(self.right, right, max(MIN_WEIGHT, 1 / self.seen))


@dataclass(frozen=True, slots=True)
class Continuation:
    """Tokens that may come next. Each is right with probability `precision` if those before it
    are."""

    tokens: Sequence[TokenId]
    precision: Precision
