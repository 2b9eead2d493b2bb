"""Computes figures of answers, and geometric means of speed-ups with confidence intervals over
prompts.

Repeats of a prompt are averaged first. An interval is a percentile bootstrap over prompts
(Efron 1979), within each family; a family with one prompt gives none. Turns of one conversation
are not independent, so with several conversations, these are drawn first, and then turns of
each (Davison and Hinkley 1997, section 3.8).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import comb
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

DRAWS: Final = 4000
LEVEL: Final = 0.95

WAITS_PASSES: Final = 1.5
"""A reader waits in a gap between two arrivals if it is longer than this many passes of the
target alone."""

Floats = NDArray[np.float64]
Ratio = tuple[str, str, float]
"""A Ratio has a family, a prompt, and a positive ratio."""


class Timed(Protocol):
    """A Timed is a measured or simulated answer. It also has the fields of results.SUMMED."""

    @property
    def ttft_ms(self) -> float: ...
    @property
    def gaps_ms(self) -> Sequence[float]: ...
    @property
    def after_first(self) -> tuple[float, float]: ...


@dataclass(frozen=True, slots=True)
class Mean:
    """A Mean is geometric; low and high bound its 95 % interval, and are None without one."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.2f}{interval}"


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean, which treats twice as fast and half as fast alike."""
    return float(np.exp(np.mean(np.log(values))))


def mean(ratios: Iterable[Ratio], scenario_of: Callable[[str], str] = str) -> Mean | None:
    """Return the geometric mean over families of the geometric means over their prompts; None
    without ratios. ratios: one for each repeat. scenario_of:
    returns the conversation of a prompt."""
    grouped: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for family, prompt, ratio in ratios:
        grouped[family][prompt].append(ratio)
    if not grouped:
        return None
    families = [
        (
            np.array([np.mean(np.log(repeats)) for repeats in prompts.values()]),
            [scenario_of(prompt) for prompt in prompts],
        )
        for prompts in grouped.values()
    ]
    value = float(np.exp(np.mean([logs.mean() for logs, _ in families])))
    if any(len(logs) < 2 for logs, _ in families):
        return Mean(value)
    chance = np.random.default_rng(0)
    draws = np.mean([_resampled(*family, chance) for family in families], axis=0)
    low, high = np.exp(np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return Mean(value, float(low), float(high))


def _resampled(logs: Floats, scenarios: Sequence[str], chance: np.random.Generator) -> Floats:
    """Return the mean of each draw of as many scenarios, with replacement, and as many turns of
    each: [DRAWS]. A single scenario is drawn turn by turn."""
    names = list(dict.fromkeys(scenarios))
    if len(names) in (1, len(logs)):
        chosen = chance.integers(len(logs), size=(DRAWS, len(logs)))
        return np.asarray(logs[chosen].mean(axis=1))
    of = np.array([names.index(name) for name in scenarios])
    sums, counts = np.zeros(DRAWS), np.zeros(DRAWS)
    for drawn in chance.integers(len(names), size=(len(names), DRAWS)):
        for at in range(len(names)):
            here, turns = np.flatnonzero(drawn == at), logs[of == at]
            chosen = chance.integers(len(turns), size=(len(here), len(turns)))
            sums[here] += turns[chosen].sum(axis=1)
            counts[here] += len(turns)
    return sums / counts


def fisher(group: tuple[int, int], control: tuple[int, int]) -> float:
    """Return the probability of as many hits in a group, or more, if it and the control group
    have the same share of them and both together have as many (Fisher 1935, one-sided). Each
    group has its number of hits and its size."""
    (hits, size), (others, control_size) = group, control
    both = hits + others
    possible = range(hits, min(size, both) + 1)
    ways = sum(comb(size, n) * comb(control_size, both - n) for n in possible)
    return ways / comb(size + control_size, both)


def rate(answers: Sequence[Timed]) -> float:
    """Return the rate of these answers together in tokens per second."""
    tokens, seconds = zip(*(answer.after_first for answer in answers), strict=True)
    return float(sum(tokens) / sum(seconds))


def gap_ms(answers: Iterable[Timed], percentile: float) -> float:
    """Return a percentile of the gaps between arrivals; 0 if there are none."""
    gaps_ms = [gap for answer in answers for gap in answer.gaps_ms] or [0.0]
    return float(np.percentile(gaps_ms, percentile))


def waiting(answers: Sequence[Timed], pass_ms: float) -> float:
    """Return the share of the time from first to last text that lies in gaps of more than
    WAITS_PASSES passes. pass_ms: the target's time for a token, `cloud`'s median gap."""
    gaps_ms = [gap for answer in answers for gap in answer.gaps_ms]
    long_ms = sum(gap for gap in gaps_ms if gap > WAITS_PASSES * pass_ms)
    return long_ms / sum(gaps_ms) if long_ms else 0.0
