"""A running mean begins with the first observation, whatever that is."""

from __future__ import annotations

import pytest

from picospec.speculation.proposing.precision import smoothed


@pytest.mark.parametrize(
    ("old", "latest", "weight", "mean"),
    [(None, 0.4, 0.25, 0.4), (0.0, 0.4, 0.25, 0.1), (0.8, 0.0, 0.125, 0.7)],
)
def test_the_latest_counts_for_its_weight(
    old: float | None, latest: float, weight: float, mean: float
) -> None:
    assert smoothed(old, latest, weight) == pytest.approx(mean)
