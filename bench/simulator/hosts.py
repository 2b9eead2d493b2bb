"""Both ends of a simulated host have these speeds, as curves over rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from bench.link import Conditions
from speculation.model_facts import Limits


class Curve:
    """A Curve maps rows to seconds: linear between the points and beyond the last; constant if
    there is only one point."""

    def __init__(self, seconds: Mapping[int, float]) -> None:
        self._rows = sorted(seconds)
        self._seconds = [seconds[rows] for rows in self._rows]
        self._known: dict[int, float] = {}

    def plus(self, seconds: float) -> Curve:
        """Return this curve, later by some seconds at every number of rows."""
        return Curve({row: self.of(row) + seconds for row in self._rows})

    def of(self, rows: int) -> float:
        if rows not in self._known:
            self._known[rows] = self._read(rows)
        return self._known[rows]

    def _read(self, rows: int) -> float:
        beyond = rows - self._rows[-1]
        if beyond > 0 and len(self._rows) > 1:
            slope = (self._seconds[-1] - self._seconds[-2]) / (self._rows[-1] - self._rows[-2])
            return self._seconds[-1] + beyond * slope
        return float(np.interp(rows, self._rows, self._seconds))


DEVICE_TWICE_AT: Final = 16
"""A step of the user's device reads this many tokens in twice the time of one. This is an
assumption."""


@dataclass(frozen=True, slots=True)
class Hosts:
    pass_s: Curve
    """A target pass takes this long, by the rows of all its sessions together."""

    draft_s: Curve
    """A draft step takes this long, by the tokens it reads: one, or more if the target was
    ahead of the draft model."""

    prefill_s: float = 0.0
    """The target takes this long for a token of the prompt."""

    draft_prefill_s: float = 0.0


CPU_BOX = Hosts(
    Curve({1: 0.209, 2: 0.242, 3: 0.193, 5: 0.190, 9: 0.252, 17: 0.354}),
    Curve({1: 0.0196, 2: 0.048, 4: 0.073, 8: 0.120, 16: 0.182}),
    prefill_s=0.010,
    draft_prefill_s=0.010,
)
"""CPU_BOX runs Qwen2.5-Coder 1.5B bf16 in vLLM on one core, 0.5B Q4_0 in llama.cpp on
another."""


def gpu(target_s: float, draft_s: float, twice_at: int | None = None) -> Hosts:
    """Return hosts with one device at each end.

    twice_at: the rows of a pass that takes twice as long as one of a single row; the time is
    linear in rows. None: all passes take the same time, as on a device far from full.
    """

    if twice_at is None:
        return Hosts(Curve({1: target_s}), Curve({1: draft_s}))
    return Hosts(Curve({1: target_s, twice_at: 2 * target_s}), device(draft_s))


def device(step_s: float) -> Curve:
    """Return the time of a step of a user's device, which reads one token in step_s."""
    return Curve({1: step_s, DEVICE_TWICE_AT: 2 * step_s})


TWICE_AT: Final = 256
"""A pass over this many rows takes twice as long as one over a single row."""


@dataclass(frozen=True, slots=True)
class World:
    hosts: Hosts
    conditions: Conditions
    limits: Limits = field(default_factory=Limits)
    rows: int = 256
    """One pass has at most this many rows."""

    others: int = 0
    """Each pass has this many rows of requests without a session."""


def hosts_of(text: str) -> Hosts:
    """Parse "cpu" (CPU_BOX), or constant times such as "72/24". Raises ValueError."""
    if text == "cpu":
        return CPU_BOX
    target_ms, slash, draft_ms = text.partition("/")
    if not slash:
        raise ValueError(f"no hosts {text!r}: give cpu, or target/draft in ms, as 72/24")
    return gpu(float(target_ms) / 1000, float(draft_ms) / 1000)
