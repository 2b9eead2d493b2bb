"""The running mean by which both ends learn."""

from __future__ import annotations

from typing import Final

WEIGHT: Final = 0.25
"""The latest observation has this weight."""


def running_mean(old: float | None, latest: float, weight: float = WEIGHT) -> float:
    """Return the running mean after one more observation. old: None before the first."""
    return latest if old is None else old + weight * (latest - old)
