"""A report tells what was measured, on what, and how sure it is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from bench.files import load, save
from bench.host import stolen_s
from bench.report import markdown
from bench.results import Answer, Results, rows
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


def long_answer(arm: str, kind: str, seconds: float, **more: object) -> Answer:
    asked = {"prompt": f"agent/a/{kind}", "family": f"agent/{kind}"}
    return answer(arm, seconds, **{"first_share": 0.1, **asked, **more})


WATCHED = {"prompt_tokens": 900, "read_tokens": 100, "draft_model_read_tokens": 70}
ORIGINS = {"draft": 6, "lookup": 2, "target": 2}
ANSWERS = (
    answer("cloud", 4.0),
    answer("picospec", 1.0, text="sand"),
    answer("paper:2", 2.0),
    answer("paper:4", 3.0),
    answer("edge-only", 1.0, text="another model's"),
    answer("picospec", 1.0, rtt_ms=200),
    answer("paper:2", 4.0, rtt_ms=200),
    answer("paper:4", 3.0, rtt_ms=200),
    *(long_answer("cloud", kind, 4.0) for kind in ("call", "edit", "react")),
    long_answer("picospec", "call", 2.0, **WATCHED, first_draft_ms=1234.0, origins=ORIGINS),
    long_answer("picospec", "edit", 1.0, **WATCHED, origins={"target": 10}),
    long_answer("picospec", "react", 3.0, first_share=1.0),
)
PAGE = Path(__file__).with_name("report.md")


def test_a_report_is_as_report_md_shows(request: pytest.FixtureRequest) -> None:
    """Rivals are at their best round. A text that differs is shown from there. An answer in one
    piece is in no speed-up of long work."""
    page = markdown(results(*ANSWERS))

    if request.config.getoption("update"):
        PAGE.write_text(page)
    assert page == PAGE.read_text()


@pytest.mark.parametrize(
    ("counters", "ticks"),
    [("cpu  10 11 12 13 14 15 16 250 18 19\ncpu0 1 1 1 1 1 1 1 99 1 1\n", 250),
     ("cpu  10 11 12 13\n", 0), (None, 0)],
    ids=["the eighth", "an old kernel", "no kernel of Linux"],
)  # fmt: skip
def test_stolen_time_is_the_eighth_of_the_kernels_counters_if_it_tells(
    counters: str | None, ticks: int, tmp_path: Path
) -> None:
    stat = tmp_path / "stat"
    if counters is not None:
        stat.write_text(counters)

    assert stolen_s(stat) == pytest.approx(ticks / os.sysconf("SC_CLK_TCK"))


# Rows are made of answers; a file holds both, and reads back as it was.


def test_a_file_reads_back_as_it_was_and_another_is_refused_by_name(tmp_path: Path) -> None:
    path, other = tmp_path / "out.json", tmp_path / "other.json"
    found = results(answer("cloud", 4.0), answer("picospec", 1.0))
    other.write_text('{"rows": 3}')

    save(found, path)

    assert load(path, Results) == found
    with pytest.raises(ValueError, match=r"other\.json"):
        load(other, Results)


def test_a_reader_waits_in_gaps_of_more_than_one_and_a_half_passes() -> None:
    some = [answer("picospec", 1.0)] * 2  # with gaps of 10, 20 and 30 ms

    assert waiting(some, pass_ms=10.0) == pytest.approx(50 / 60)
    assert waiting(some, pass_ms=15.0) == pytest.approx(30 / 60)
    assert waiting(some, pass_ms=20.0) == 0.0
    assert waiting([], pass_ms=20.0) == 0.0


def test_a_row_compares_an_arm_with_clouds_first_answer_to_the_same_question() -> None:
    found = rows(
        [
            answer("cloud", 4.0, prompt="a"), answer("cloud", 8.0, prompt="b"),
            answer("picospec", 2.0, prompt="a"), answer("picospec", 1.0, prompt="b"),
            answer("picospec", 2.0, prompt="a", rtt_ms=200, text="other"),
            answer("picospec", 2.0, prompt="a", rtt_ms=200, repeat=1),
            answer("cloud", 5.0, prompt="a", rtt_ms=200),
        ]
    )  # fmt: skip

    assert [(x.arm, x.prompts, x.speedup_vs_cloud, x.identical_to_cloud) for x in found] == [
        ("cloud", 2, 1.0, True),
        ("picospec", 2, 4.0, True),
        ("picospec", 1, 2.0, False),
        ("cloud", 1, 0.8, True),
    ]


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
