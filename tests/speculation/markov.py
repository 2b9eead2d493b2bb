"""Models whose distributions depend on the last token, and a test of their texts."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
from scipy import stats

from picospec.speculation.drafting.session import DraftingSession
from picospec.speculation.sampling.distributions import Distribution, quantise
from picospec.speculation.sampling.draft_token import DraftToken

SIZE = 14


def table(number: int, evenness: float) -> list[Distribution]:
    """The distribution after each token."""
    rows = np.random.default_rng(number).dirichlet([evenness] * SIZE, SIZE)
    return [Distribution(np.arange(SIZE), row) for row in rows]


TARGET = table(1, 2.0)
DRAFTER = [quantise(distribution) for distribution in table(2, 1.0)]


def draft(edge: DraftingSession, chance: Random) -> None:
    """Extend the chain by up to three draft tokens."""
    last = edge.context[-1] if edge.chain or edge.committed else 0
    for _ in range(chance.randrange(4)):
        if edge.may_extend:
            q = DRAFTER[last]
            last = q.at(chance.random())
            edge.extend(DraftToken(last, 0.5, q))


def pvalue(texts: Sequence[list[int]]) -> float:
    """Test the counts of each token after each other token against the target."""
    counts = np.zeros((SIZE, SIZE))
    for text in texts:
        np.add.at(counts, ([0, *text[:-1]], text), 1)
    expected = counts.sum(1, keepdims=True) * np.array(
        [distribution.p for distribution in TARGET]
    )
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(stats.chi2.sf(statistic, SIZE * (SIZE - 1)))
