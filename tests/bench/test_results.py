"""Rows are made of answers; a file holds both, and reads back as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from picospec.bench.data.results import Results, load, rows, save
from picospec.bench.data.statistics import waiting
from tests.bench.answers import answer, results


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
