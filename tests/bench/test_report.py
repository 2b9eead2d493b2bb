"""A report tells what was measured, on what, and how sure it is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from bench.comparison import Comparison
from bench.costs import figures
from bench.files import load, save
from bench.host import stolen_s
from bench.report import markdown
from bench.results import Results, rows
from bench.statistics import Mean, mean, waiting
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


# Rows are made of answers; a file holds both, and reads back as it was.


def test_a_file_reads_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    found = results(answer("cloud", 4.0), answer("picospec", 1.0))

    save(found, path)

    assert load(path, Results) == found


def test_a_file_of_something_else_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"rows": 3}')

    with pytest.raises(ValueError, match=r"other\.json"):
        load(path, Results)


def test_a_reader_waits_in_gaps_of_more_than_one_and_a_half_passes() -> None:
    some = [answer("picospec", 1.0)] * 2  # with gaps of 10, 20 and 30 ms

    assert waiting(some, pass_ms=10.0) == pytest.approx(50 / 60)
    assert waiting(some, pass_ms=15.0) == pytest.approx(30 / 60)
    assert waiting(some, pass_ms=20.0) == 0.0
    assert waiting([], pass_ms=20.0) == 0.0


def test_a_speedup_is_the_geometric_mean_over_the_same_questions() -> None:
    found = rows(
        [
            answer("cloud", 4.0, prompt="a"),
            answer("cloud", 8.0, prompt="b"),
            answer("picospec", 2.0, prompt="a"),
            answer("picospec", 1.0, prompt="b"),
        ]
    )

    assert [(row.arm, row.prompts, row.speedup_vs_cloud) for row in found] == [
        ("cloud", 2, 1.0),
        ("picospec", 2, 4.0),
    ]


def test_clouds_first_answer_is_the_reference_at_every_distance() -> None:
    found = rows(
        [
            answer("cloud", 4.0, rtt_ms=10),
            answer("picospec", 2.0, rtt_ms=200),
            answer("cloud", 5.0, rtt_ms=200),
        ]
    )

    assert [row.speedup_vs_cloud for row in found] == [1.0, 2.0, 0.8]


def test_one_other_text_makes_a_row_differ() -> None:
    found = rows(
        [
            answer("cloud", 4.0, repeat=0),
            answer("cloud", 4.0, repeat=1),
            answer("picospec", 2.0, repeat=0),
            answer("picospec", 2.0, repeat=1, text="other"),
        ]
    )

    assert [row.identical_to_cloud for row in found] == [True, False]


@pytest.mark.parametrize(
    ("first_share", "ttft_ms", "rate"),
    [(0.2, 50.0, 8 / 4), (1.0, 50.0, 10 / 4.05), (0.2, 4050.0, 10 / 4.05),
     (0.2, 4050.000001, 10 / 4.05)],
)  # fmt: skip
def test_a_rate_leaves_out_what_came_first_unless_all_came_at_once(
    first_share: float, ttft_ms: float, rate: float
) -> None:
    [row] = rows([answer("cloud", 4.05, first_share=first_share, ttft_ms=ttft_ms)])

    assert row.tokens_per_s == pytest.approx(rate, abs=1e-4)


def test_an_answer_waits_for_clouds() -> None:
    assert rows([answer("picospec", 2.0)]) == []
