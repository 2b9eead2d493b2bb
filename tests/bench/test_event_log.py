"""The log of a simulation has every message, and two logs can be compared."""

from __future__ import annotations

import json

from picospec.bench.link.path import Conditions
from picospec.bench.simulator.event_log import events, report
from picospec.bench.simulator.source import synthetic
from picospec.bench.simulator.world import World
from tests.bench.simulated import GPU


def log(rtt_ms: float) -> str:
    return events(World(GPU, Conditions(rtt_ms)), "picospec", [[synthetic(0.8, 10)]])


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
