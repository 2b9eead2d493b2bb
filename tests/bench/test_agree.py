"""A prediction is compared with the run it is for: the same prompts, tokens and links."""

from __future__ import annotations

import pytest

from picospec.bench.data.results import Results
from picospec.bench.simulator.command import compare, predict
from picospec.bench.simulator.hosts import gpu
from picospec.bench.simulator.table import SimulatedRow
from picospec.bench.traces import Trace
from tests.bench.answers import answer, results, right_trace

ARMS = ("cloud", "picospec", "sync:2", "picospec-useless")


def trace(prompt: str, tokens: int = 30, temperature: float = 0.0) -> Trace:
    return right_trace((0, 1, 2), range(tokens), name=prompt, temperature=temperature)


def measured() -> Results:
    return results(*(answer(arm, 2.0, prompt="a", rtt_ms=20.0) for arm in ARMS))


def test_a_prediction_has_the_runs_cells_that_the_simulator_knows() -> None:
    found = list(predict(measured(), [trace("a")], gpu(0.1, 0.01)))

    assert [(row.arm, row.rtt_ms) for row in found] == [
        ("cloud", 20.0), ("picospec", 20.0), ("sync:2", 20.0)
    ]  # fmt: skip


@pytest.mark.parametrize("traces", [[], [trace("b")], [trace("a", 5)], [trace("a", 30, 1.0)]])
def test_a_prompt_without_a_long_enough_trace_is_named(traces: list[Trace]) -> None:
    with pytest.raises(ValueError, match="no trace of a has 10 tokens at T = 0"):
        list(predict(measured(), traces, gpu(0.1, 0.01)))


def test_cells_are_compared_where_both_have_them() -> None:
    predicted = list(predict(measured(), [trace("a")], gpu(0.1, 0.01)))

    cells = compare(predicted, measured())

    assert [cell.arm for cell in cells] == ["picospec", "sync:2"]
    by_arm: dict[str, SimulatedRow] = {row.arm: row for row in predicted}
    assert cells[0].simulated == by_arm["picospec"].speedup_vs_cloud
    assert cells[0].measured == 1.0
