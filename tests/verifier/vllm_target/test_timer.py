"""A core that waits for messages wakes by itself when the first held session is due."""

from __future__ import annotations

import time
from math import inf
from queue import Empty, Queue
from typing import Any

import pytest

pytest.importorskip("vllm.v1.engine.core")  # its warnings are not ours

from vllm.v1.engine import EngineCoreRequestType

from picospec.verifier.vllm_target.core.sessions import wake_in_time

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


def waking(at: float) -> Queue[Any]:
    received: Queue[Any] = Queue()
    wake_in_time(received, lambda: at)
    return received


def test_it_wakes_at_the_time_and_not_before() -> None:
    begun = time.monotonic()

    kind, _ = waking(begun + 0.05).get(block=True)

    assert kind is EngineCoreRequestType.WAKEUP
    assert 0.05 <= time.monotonic() - begun < 5.0


def test_a_time_that_is_over_wakes_at_once_and_messages_come_first() -> None:
    received = waking(0.0)
    received.put_nowait("a message")

    assert received.get() == "a message"
    assert received.get()[0] is EngineCoreRequestType.WAKEUP


def test_a_core_that_only_looks_does_not_wait() -> None:
    for at in (0.0, inf):
        with pytest.raises(Empty):
            waking(at).get_nowait()
