"""A timer rings at the earliest time asked for, and can be set while it rings."""

from __future__ import annotations

import threading
import time
from math import inf

import pytest

pytest.importorskip("vllm.v1.engine.core")  # its warnings are not ours

from picospec.verifier.vllm_target.core.session_scheduler import Timer

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


def test_it_rings_at_the_earliest_time() -> None:
    rung = threading.Event()
    timer, now = Timer(rung.set), time.monotonic()

    timer.set(now + 60.0, now)
    timer.set(inf, now)
    timer.set(now + 0.01, now)

    assert rung.wait(5.0)


def test_it_can_be_set_again_while_it_rings() -> None:
    rung: list[float] = []
    twice = threading.Event()

    def ring() -> None:
        rung.append(time.monotonic())
        if len(rung) == 1:
            timer.set(rung[0] + 0.01, rung[0])
        else:
            twice.set()

    timer, now = Timer(ring), time.monotonic()
    timer.set(now + 0.01, now)

    assert twice.wait(5.0)
