"""A report tells what was measured, on what, and how sure it is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from picospec.bench.data.results import stolen_s
from picospec.bench.data.statistics import Mean, mean
from picospec.bench.report.command import markdown
from picospec.bench.report.figures import Comparison, figures
from tests.bench.answers import answer, results


def mean_of(ratios: Mapping[str, Mapping[str, Sequence[float]]]) -> Mean:
    """The mean of ratios by family and prompt."""
    found = mean(
        (family, prompt, ratio)
        for family, prompts in ratios.items()
        for prompt, repeats in prompts.items()
        for ratio in repeats
    )
    assert found is not None
    return found


def test_the_mean_is_geometric_over_repeats_prompts_and_families() -> None:
    found = mean_of({"code": {"a": [8.0, 2.0], "b": [16.0]}, "chat": {"c": [2.0], "d": [2.0]}})

    assert found.value == pytest.approx(4.0)


def test_the_interval_holds_the_true_mean_in_most_samples() -> None:
    chance = np.random.default_rng(5)
    held = 0

    for _ in range(100):
        ratios = {str(i): [float(x)] for i, x in enumerate(chance.lognormal(0.7, 0.3, 12))}
        found = mean_of({"code": ratios})
        assert found.low is not None
        assert found.high is not None
        held += found.low <= np.exp(0.7) <= found.high

    assert 85 <= held <= 99  # a bootstrap of 12 is a little too sure


def test_families_are_drawn_from_independently() -> None:
    fast_first, slow_first = {"a": [4.0], "b": [1.0]}, {"c": [1.0], "d": [4.0]}

    found = mean_of({"code": fast_first, "chat": slow_first})

    assert (found.low, found.high) == pytest.approx((1.0, 4.0))


def test_a_page_names_host_models_commit_and_every_arm() -> None:
    page = markdown(
        results(answer("cloud", 4.0), answer("picospec", 1.0), answer("sync:4", 2.0))
    )

    for part in ("a processor", "abc123", "big", "small"):
        assert part in page
    for row in ("| picospec | 4.00 |", "| sync:4 | 2.00 |"):
        assert row in page  # one prompt gives no interval
    assert "Other work" not in page


def test_an_arm_is_compared_with_each_rival_at_its_best_round_by_link() -> None:
    page = markdown(
        results(
            answer("cloud", 4.0),
            answer("picospec", 1.0),
            answer("paper:2", 2.0),
            answer("paper:4", 3.0),
            answer("picospec", 1.0, rtt_ms=200),
            answer("paper:2", 4.0, rtt_ms=200),
            answer("paper:4", 3.0, rtt_ms=200),
        )
    )

    rival = "| times as fast as `paper`, at its best | 2.00 (`paper:2`) | 3.00 (`paper:4`) |"
    assert rival in page
    assert "times as fast as `sync`" not in page


def test_gaps_bytes_and_passes_are_given_over_distance() -> None:
    compared = Comparison(results(answer("cloud", 4.0), answer("picospec", 1.0)), 0.0)

    found = figures(compared, "picospec", (10.0, None))

    assert found == {
        "times as fast as `cloud`": "4.00",
        "gap p99, times `cloud`'s": "1.00",
        "passes per token": "0.50",
        "bytes up per token": "6.0",
        "bytes down per token": "4.0",
        "texts as `cloud`'s": "1 of 1",
    }


def test_a_text_that_is_not_clouds_is_shown_from_where_it_differs() -> None:
    page = markdown(
        results(
            answer("cloud", 4.0),
            answer("picospec", 1.0, text="sand"),
            answer("edge-only", 1.0, text="another model's"),
        )
    )

    assert "| picospec | 10 ms | p | 0 | 2 | `'me'` | `'nd'` |" in page
    assert "| edge-only | 10 ms | p |" not in page


def test_stolen_time_is_the_eighth_of_the_kernels_counters(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  10 11 12 13 14 15 16 250 18 19\ncpu0 1 1 1 1 1 1 1 99 1 1\n")

    assert stolen_s(stat) == pytest.approx(250 / os.sysconf("SC_CLK_TCK"))


def test_a_kernel_that_does_not_tell_has_nothing_stolen(tmp_path: Path) -> None:
    assert stolen_s(tmp_path / "none") == 0.0

    (tmp_path / "stat").write_text("cpu  10 11 12 13\n")
    assert stolen_s(tmp_path / "stat") == 0.0
