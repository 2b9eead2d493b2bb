"""Predictions say what was simulated: every point, arm and distance, and how many clients."""

from __future__ import annotations

from pathlib import Path

import pytest

from picospec.bench.predictions import __main__ as predictions
from picospec.bench.predictions.__main__ import ARMS, RTTS_MS
from picospec.bench.predictions.plots import draw
from picospec.bench.simulator.capacity import CLIENTS, Crowd, capacity
from picospec.bench.simulator.hosts import POINTS
from picospec.bench.simulator.source import synthetic
from picospec.bench.simulator.table import Group

POINT = next(iter(POINTS))


def crowd(clients: int, tokens_per_s: float, arm: str = "cloud") -> Crowd:
    return Crowd(POINT, arm, clients, tokens_per_s, None)


@pytest.mark.parametrize(
    ("tokens_per_s", "clients"), [(30.0, 0.0), (15.0, 6.0), (10.0, 11.0), (5.0, 11.0)]
)
def test_capacity_lies_between_the_numbers_simulated(
    tokens_per_s: float, clients: float
) -> None:
    found = [crowd(1, 20.0), crowd(11, 10.0), crowd(1, 99.0, arm="picospec")]

    assert capacity(found, "cloud", tokens_per_s) == pytest.approx(clients)


@pytest.mark.filterwarnings("default")  # a font cache may be written
def test_tables_and_plots_have_every_arm_and_distance(tmp_path: Path) -> None:
    cells = {
        (POINT, 0.0): predictions.single([Group("code", 0.0, [synthetic(0.8, 20)])], POINT)
    }
    found = [crowd(count, 100.0 / count) for count in CLIENTS]

    table = predictions.speedup_table(cells, 0.0)
    files = draw(cells, found, tmp_path)

    assert [line.split("|")[2].strip(" `") for line in table.splitlines()[2:]] == list(ARMS)
    assert all(f"{ms:g} ms" in table.splitlines()[0] for ms in RTTS_MS)
    assert "| 11.1 | 10 | 0 | 0 |" in predictions.capacity_table(found)
    assert predictions.crowd_table(found).endswith(f"| {100.0 / CLIENTS[-1]:.1f} |")
    assert [file.name for file in files] == ["predicted-speedup.png", "predicted-capacity.png"]
    assert all(file.stat().st_size > 1000 for file in files)
