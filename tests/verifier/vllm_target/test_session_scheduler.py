"""What the scheduler makes of messages between two steps."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


class ListeningSeat:
    complaint = None

    def __init__(self) -> None:
        self.heard: list[tuple[bytes, float]] = []

    def receive(self, frames: bytes, arrived: float, u: Iterator[float]) -> bool:
        self.heard.append((frames, arrived))
        return False


def test_a_message_keeps_the_time_at_which_it_reached_the_host() -> None:
    pytest.importorskip("vllm")
    from verifier.vllm_target.core.session_scheduler import SessionScheduler

    seat = ListeningSeat()
    scheduler = SimpleNamespace(
        _seats=SimpleNamespace(find=lambda session: ("request", seat)),
        requests={"request": None},
        _uniforms=lambda: iter(()),
    )

    assert SessionScheduler.push(scheduler, "s", b"frames", 12.5) is None  # type: ignore[arg-type]

    assert seat.heard == [(b"frames", 12.5)]
