"""Each end learns from what it sees: a running mean, and how often continuations are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from speculation.model_facts import TokenId

WEIGHT: Final = 0.25
"""The latest observation has this weight."""


def running_mean(old: float | None, latest: float, weight: float = WEIGHT) -> float:
    """Return the running mean after one more observation. old: None before the first."""
    return latest if old is None else old + weight * (latest - old)


MIN_WEIGHT: Final = 1 / 32
"""The latest observation has at least this weight, so the estimate follows the text."""


@dataclass(slots=True)
class Precision:
    """The share of right tokens of one kind is a running mean that starts at a prior, which
    counts as `seen` observations. The latest one has at least the weight `min_weight`."""

    right: float
    seen: int
    min_weight: float = MIN_WEIGHT

    def observe(self, right: bool) -> None:
        self.seen += 1
        self.right = running_mean(self.right, right, max(self.min_weight, 1 / self.seen))

    def expected(self, count: int) -> float:
        """Return the expected number of right tokens before the first wrong one of so many."""
        return sum(self.right**k for k in range(1, count + 1))


@dataclass(frozen=True, slots=True)
class Continuation:
    """Tokens that may come next, after `agreed` tokens that the text and their source share.

    by_agreed: maps numbers of agreeing tokens to the precision of the token after as many or
    more. A token that is right makes one more agree, so the later ones are the surer.
    """

    tokens: Sequence[TokenId]
    agreed: int
    by_agreed: Mapping[int, Precision]

    @property
    def precision(self) -> Precision:
        """The precision of the first token."""
        if known := self.by_agreed.get(self.agreed):
            return known
        return self.by_agreed[max(least for least in self.by_agreed if least <= self.agreed)]

    def chances(self) -> list[float]:
        """Return the probability of each token that it is right with all those before it."""
        chances: list[float] = []
        reached, right = 1.0, 0.0
        for agreed in range(self.agreed, self.agreed + len(self.tokens)):
            if not chances:
                right = self.precision.right
            elif precision := self.by_agreed.get(agreed):
                right = precision.right
            reached *= right
            chances.append(reached)
        return chances
