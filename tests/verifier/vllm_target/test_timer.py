"""The alarm rings at the earliest time asked for, and can be set while it rings."""

from __future__ import annotations

import threading
import time
from math import inf

from verifier.vllm_target.core.timer import Timer


def test_it_rings_at_the_earliest_time() -> None:
    rung = threading.Event()
    alarm, now = Timer(rung.set), time.monotonic()

    alarm.set(now + 60.0, now)
    alarm.set(inf, now)
    alarm.set(now + 0.01, now)

    assert rung.wait(5.0)


def test_it_can_be_set_again_while_it_rings() -> None:
    rung: list[float] = []
    twice = threading.Event()

    def ring() -> None:
        rung.append(time.monotonic())
        if len(rung) == 1:
            alarm.set(rung[0] + 0.01, rung[0])
        else:
            twice.set()

    alarm, now = Timer(ring), time.monotonic()
    alarm.set(now + 0.01, now)

    assert twice.wait(5.0)
