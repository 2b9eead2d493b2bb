"""Messages on their way into the engine: sent at once, in order, and never too many."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from picospec.verifier.target import TargetFailed
from picospec.verifier.vllm_target.serving.target import MAX_IN_FLIGHT, Inflight


class SlowEngine:
    """Takes messages in when told to."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.step = asyncio.Event()

    async def push(self, number: int) -> None:
        self.sent.append(number)
        await self.step.wait()


async def test_sending_does_not_wait_for_the_engine() -> None:
    engine, inflight = SlowEngine(), Inflight()

    for number in range(5):
        await inflight.send(partial(engine.push, number))

    assert engine.sent == [0, 1, 2, 3, 4]
    inflight.cancel()


async def test_too_many_messages_within_a_step_wait_for_it() -> None:
    engine, inflight = SlowEngine(), Inflight()
    for number in range(MAX_IN_FLIGHT):
        await inflight.send(partial(engine.push, number))

    one_more = asyncio.create_task(inflight.send(partial(engine.push, MAX_IN_FLIGHT)))
    await asyncio.sleep(0.01)
    assert len(engine.sent) == MAX_IN_FLIGHT

    engine.step.set()
    await one_more
    assert len(engine.sent) == MAX_IN_FLIGHT + 1


async def test_a_session_that_ends_before_its_message_is_sent_leaves_nothing_behind() -> None:
    engine, inflight = SlowEngine(), Inflight()

    sending = asyncio.create_task(inflight.send(partial(engine.push, 0)))
    await asyncio.sleep(0)
    inflight.cancel()
    await sending

    assert engine.sent == []


async def test_an_engine_that_breaks_is_no_fault_of_the_edges() -> None:
    async def broken() -> None:
        raise OSError("the core is gone")

    inflight = Inflight()
    await inflight.send(broken)
    await asyncio.sleep(0)

    with pytest.raises(TargetFailed, match="the core is gone"):
        await inflight.send(broken)
