"""What is reported about a machine is read from its kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from picospec.bench.data.host import stolen_s


def test_stolen_time_is_the_eighth_of_the_kernels_counters(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  10 11 12 13 14 15 16 250 18 19\ncpu0 1 1 1 1 1 1 1 99 1 1\n")

    assert stolen_s(stat) == pytest.approx(250 / os.sysconf("SC_CLK_TCK"))


def test_a_kernel_that_does_not_tell_has_nothing_stolen(tmp_path: Path) -> None:
    assert stolen_s(tmp_path / "none") == 0.0

    (tmp_path / "stat").write_text("cpu  10 11 12 13\n")
    assert stolen_s(tmp_path / "stat") == 0.0
