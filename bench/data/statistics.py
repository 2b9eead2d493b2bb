"""Figures of answers, and geometric means of speed-ups with intervals that say how far the
prompts carry.

Repeats of one prompt are averaged first. An interval is a percentile bootstrap over prompts
(Efron 1979), within each family; a family with one prompt gives none. Turns of one conversation
are not independent: where there are several conversations, these are drawn first, and then
turns of each (Davison and Hinkley 1997, section 3.8).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

DRAWS: Final = 4000
LEVEL: Final = 0.95

WAITS_PASSES: Final = 1.5
"""A reader waits in a gap between two arrivals that is longer than so many passes of the target
alone."""

Floats = NDArray[np.float64]


class Timed(Protocol):
    """An answer, measured or simulated; it also has the fields results.SUMMED."""

    @property
    def ttft_ms(self) -> float: ...
    @property
    def gaps_ms(self) -> Sequence[float]: ...
    @property
    def later(self) -> tuple[float, float]: ...


@dataclass(frozen=True, slots=True)
class Mean:
    """A geometric mean; low and high bound its 95 % interval, None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.2f}{interval}"


def geometric_mean(values: Sequence[float]) -> float:
    """Return the mean that treats twice as fast and half as fast alike."""
    return float(np.exp(np.mean(np.log(values))))


def mean(
    ratios: Iterable[tuple[str, str, float]], scenario_of: Callable[[str], str] = str
) -> Mean | None:
    """Return the geometric mean over families of the geometric means over their prompts; None
    for no ratios. ratios: (family, prompt, positive ratio), one a repeat. scenario_of: returns
    the conversation of a prompt."""
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
    """Return the mean of each draw of as many scenarios, with replacement, and of as many turns
    of each: [DRAWS]. A single scenario is drawn turn by turn."""
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


def rate(answers: Sequence[Timed]) -> float:
    """Return the tokens per second of these answers together."""
    tokens, seconds = zip(*(answer.later for answer in answers), strict=True)
    return float(sum(tokens) / sum(seconds))


def gap_ms(answers: Iterable[Timed], percentile: float) -> float:
    """Return a percentile of the gaps between arrivals; 0 where there are none."""
    gaps_ms = [gap for answer in answers for gap in answer.gaps_ms] or [0.0]
    return float(np.percentile(gaps_ms, percentile))


def waiting(answers: Sequence[Timed], pass_ms: float) -> float:
    """Return the share of the time from first to last text that lies in gaps of more than
    WAITS_PASSES passes. pass_ms: the target's time for a token, `cloud`'s median gap."""
    gaps_ms = [gap for answer in answers for gap in answer.gaps_ms]
    long_ms = sum(gap for gap in gaps_ms if gap > WAITS_PASSES * pass_ms)
    return long_ms / sum(gaps_ms) if long_ms else 0.0
