"""The running mean that both ends learn with: times, and how often drafts stand."""

from __future__ import annotations

from typing import Final

WEIGHT: Final = 0.25
"""Of the latest observation."""


def smoothed(old: float | None, latest: float, weight: float = WEIGHT) -> float:
    """Return the running mean after one more observation; old None: there was none."""
    return latest if old is None else old + weight * (latest - old)
