"""Traces become answers, answers become cells, cells become a table, messages become a log."""

from __future__ import annotations

import json
from dataclasses import replace
from operator import eq
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from picospec.bench.__main__ import app
from picospec.bench.data.prompts import sampling
from picospec.bench.link import Conditions
from picospec.bench.simulator.event_log import events, report
from picospec.bench.simulator.hosts import gpu
from picospec.bench.simulator.source import WRONG, Source, dense, synthetic, traced
from picospec.bench.simulator.table import GAMMAS, Group, rows
from picospec.bench.simulator.world import World
from picospec.bench.traces import Trace
from picospec.speculation.distributions import distribution, noise_index

V = 16
GPU = World(gpu(0.1, 0.01), Conditions())


def trace(temperature: float = 1.0, family: str = "code", n: int = 24) -> Trace:
    """A target sampled with the shared noise, and a draft model of the same distribution."""
    chance = np.random.default_rng(3)
    logits = -np.sort(-chance.normal(size=(n, V)).astype(np.float32), axis=1) * 2
    tokens = chance.permuted(np.tile(np.arange(V, dtype=np.int32), (n, 1)), axis=1)
    sampled = [
        distribution(dense(*row), sampling(temperature)).picked(7, noise_index(3, i))
        for i, row in enumerate(zip(tokens, logits, strict=True))
    ]
    answer = np.array(sampled, np.int32)
    return Trace(
        family, f"{family}/1", temperature, 7, np.arange(3, dtype=np.int32), answer, tokens,
        logits, np.full((n, 1), -1, np.int32), np.zeros((n, 1), np.float32),
    )  # fmt: skip


def accepted(source: Source) -> int:
    """Count the positions whose draft token, after the target's context, is the target's."""
    drafts = (source.draft(source.tokens[:i]).token for i in range(len(source.tokens)))
    return sum(map(eq, drafts, source.tokens))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_draft_tokens_of_the_targets_distribution_are_nearly_always_accepted(
    temperature: float,
) -> None:
    source = traced(trace(temperature))

    assert accepted(source) >= (0.8 if temperature else 1.0) * len(source.tokens)


def test_after_its_own_miss_the_draft_model_drafts_what_the_trace_has() -> None:
    same = trace(0.0, n=3)
    other = replace(
        same,
        draft_tokens=np.roll(same.draft_tokens, 1, axis=1),
        after_miss_tokens=np.array([[40, 41], [50, 51], [60, 61]], np.int32),
        after_miss_confidences=np.full((3, 2), 0.5, np.float32),
    )

    source = traced(other)

    missed = source.draft([]).token
    first, second = source.draft([missed]), source.draft([missed, 40])
    assert [(each.token, each.confidence) for each in (first, second)] == [(40, 0.5), (41, 0.5)]
    after = source.draft(source.tokens[:1]).token
    assert source.draft([source.tokens[0], after]).token == 50
    assert source.draft([missed, 99]).token >= WRONG  # it never drafted 99
    assert source.draft([99, 40]).token >= WRONG


def test_after_a_miss_every_draft_token_misses() -> None:
    source = synthetic(1.0, 10)

    assert source.draft([0, 1]).token == 2
    assert source.draft([0, 9]).token not in source.tokens


def test_a_cell_holds_the_best_gamma_and_the_speed_up_over_cloud() -> None:
    group = Group("code", 0.0, [synthetic(1.0, 60)])

    cloud, sync = rows(GPU, [group], [20.0], ["cloud", "sync"])

    assert cloud.speedup_vs_cloud == pytest.approx(1.0)
    assert cloud.tokens_per_s == pytest.approx(10.0)
    assert sync.gamma in GAMMAS
    assert sync.speedup_vs_cloud >= max(
        row.speedup_vs_cloud
        for gamma in GAMMAS
        for row in rows(GPU, [group], [20.0], [f"sync:{gamma}"])
    )


def test_the_command_prints_a_table_and_writes_rows(tmp_path: Path) -> None:
    trace().save(tmp_path)
    out = tmp_path / "out.json"
    arguments = ["--traces", str(tmp_path), "--rtt", "10,100", "--arms", "cloud,picospec"]

    result = CliRunner().invoke(app, ["simulate", *arguments, "--json", str(out)])

    assert result.exit_code == 0, result.output
    assert "picospec" in result.output
    found = json.loads(out.read_text())["rows"]
    assert [(row["arm"], row["rtt_ms"]) for row in found] == [
        ("cloud", 10), ("picospec", 10), ("cloud", 100), ("picospec", 100),
    ]  # fmt: skip


def log(rtt_ms: float) -> str:
    return events(
        replace(GPU, conditions=Conditions(rtt_ms)), "picospec", [[synthetic(0.8, 10)]]
    )


def test_every_message_that_was_sent_has_arrived() -> None:
    lines = [json.loads(line) for line in log(20.0).splitlines()]

    sent, arrived = (
        [line for line in lines if line[0] == kind] for kind in ("sent", "arrived")
    )
    assert len(sent) == len(arrived) > 0
    assert lines[-1][:3] == ["answer", 0, 10]


def test_equal_cells_are_counted_and_the_first_difference_is_shown() -> None:
    near, far = log(20.0), log(50.0)

    lines = list(report({"a": near, "b": near}, {"a": near, "b": far}))

    assert lines[0].startswith("b\n")
    assert lines[-1] == "0 only in one log, 1 identical, 1 different"
