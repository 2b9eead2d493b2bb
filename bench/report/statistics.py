"""Geometric means of speed-ups, with intervals that say how far the prompts carry.

Prompts are the sample: repeats of one are averaged first. An interval is a percentile bootstrap
over prompts (Efron 1979), within each family; one prompt a family gives none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

DRAWS: Final = 4000
LEVEL: Final = 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Mean:
    """A geometric mean; low and high bound its 95 % interval, None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.2f}{interval}"


def mean(ratios: Mapping[str, Mapping[str, Sequence[float]]]) -> Mean:
    """Return the geometric mean over families of the geometric means over their prompts.

    ratios: family -> prompt -> one ratio a repeat, all positive. ValueError when there is none.
    """
    families = [_logs(prompts) for prompts in ratios.values() if prompts]
    if not families:
        raise ValueError("there is nothing to take the mean of")
    value = float(np.exp(np.mean([logs.mean() for logs in families])))
    if any(len(logs) < 2 for logs in families):
        return Mean(value)
    chance = np.random.default_rng(0)
    draws = np.mean([_resampled(logs, chance) for logs in families], axis=0)
    low, high = np.exp(np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return Mean(value, float(low), float(high))


def _logs(prompts: Mapping[str, Sequence[float]]) -> Floats:
    return np.array([np.mean(np.log(repeats)) for repeats in prompts.values()])


def _resampled(logs: Floats, chance: np.random.Generator) -> Floats:
    """Return the mean of each draw of as many prompts, with replacement: [DRAWS]."""
    chosen = chance.integers(len(logs), size=(DRAWS, len(logs)))
    return np.asarray(logs[chosen].mean(axis=1))


def grouped(
    ratios: Iterable[tuple[str, str, float]],
) -> dict[str, dict[str, list[float]]]:
    """Return family -> prompt -> ratios, of (family, prompt, ratio)."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for family, prompt, ratio in ratios:
        found[family][prompt].append(ratio)
    return {family: dict(prompts) for family, prompts in found.items()}
