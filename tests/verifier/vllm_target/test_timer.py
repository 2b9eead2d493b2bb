"""A core that waits for messages wakes by itself when the first held session is due."""

from __future__ import annotations

import time
from math import inf
from queue import Empty, Queue

import pytest

pytest.importorskip("vllm.v1.engine.core")  # its warnings are not ours

from vllm.v1.engine import EngineCoreRequestType

from picospec.verifier.vllm_target.core.sessions import get_in_time

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


def test_it_wakes_at_the_time_and_not_before() -> None:
    begun = time.monotonic()

    kind, _ = get_in_time(Queue().get, begun + 0.05, block=True)

    assert kind is EngineCoreRequestType.WAKEUP
    assert 0.05 <= time.monotonic() - begun < 5.0


def test_a_time_that_is_over_wakes_at_once_and_messages_come_first() -> None:
    received: Queue[str] = Queue()
    received.put_nowait("a message")

    assert get_in_time(received.get, 0.0) == "a message"
    assert get_in_time(received.get, 0.0)[0] is EngineCoreRequestType.WAKEUP


def test_a_core_that_only_looks_does_not_wait() -> None:
    for at in (0.0, inf):
        with pytest.raises(Empty):
            get_in_time(Queue().get, at, block=False)
