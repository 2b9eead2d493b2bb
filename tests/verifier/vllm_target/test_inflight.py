"""Messages on their way into the engine: sent at once, in order, and never too many."""

from __future__ import annotations

import asyncio

import pytest

from picospec.verifier.target import TargetFailed
from picospec.verifier.vllm_target.crossing import Batch
from picospec.verifier.vllm_target.serving.ranks import MAX_IN_FLIGHT, Outbox


class Core:
    """Takes messages in, and reads them when asked to."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.step = asyncio.Event()
        self.broken: Exception | None = None
        self.outbox = Outbox(self.send, self.read)

    async def send(self, batch: Batch) -> None:
        if self.broken:
            raise self.broken
        self.batches.append(batch)

    async def read(self) -> None:
        await self.step.wait()

    async def push(self, session: str, count: int) -> None:
        for _ in range(count):
            await self.outbox.push(session, b"frames")


async def test_the_messages_of_one_turn_are_sent_at_once_and_in_order() -> None:
    core = Core()

    for session, frames in [("a", b"1"), ("b", b"2"), ("a", b"3")]:
        await core.outbox.push(session, frames)
    assert core.batches == []
    await asyncio.sleep(0.01)
    await core.outbox.push("b", b"4")
    await asyncio.sleep(0.01)

    assert core.batches == [[("a", b"1"), ("b", b"2"), ("a", b"3")], [("b", b"4")]]


async def test_too_many_messages_within_a_step_wait_for_it() -> None:
    core = Core()
    await core.push("a", MAX_IN_FLIGHT)

    one_more = asyncio.create_task(core.push("a", 1))
    await core.push("b", 1)  # another session does not wait
    await asyncio.sleep(0.01)
    assert sum(map(len, core.batches)) == MAX_IN_FLIGHT + 1

    core.step.set()
    await one_more
    await core.push("a", 5 * MAX_IN_FLIGHT)
    assert sum(map(len, core.batches)) > 5 * MAX_IN_FLIGHT


async def test_a_session_that_fills_up_while_an_answer_is_awaited_gets_another() -> None:
    core = Core()
    await core.push("b", MAX_IN_FLIGHT // 2)
    await asyncio.sleep(0.01)

    filling = asyncio.create_task(core.push("a", MAX_IN_FLIGHT + 1))
    await asyncio.sleep(0.01)
    core.step.set()

    async with asyncio.timeout(5):
        await filling


async def test_a_session_that_ends_leaves_nothing_behind() -> None:
    core = Core()
    await core.push("a", MAX_IN_FLIGHT)
    waiting = asyncio.create_task(core.push("a", 1))
    await asyncio.sleep(0.01)

    core.outbox.forget("a")

    async with asyncio.timeout(5):
        await waiting


@pytest.mark.parametrize("at_once", [True, False])
async def test_an_engine_that_breaks_is_no_fault_of_the_edges(at_once: bool) -> None:
    core = Core()
    core.broken = OSError("the core is gone")
    if at_once:

        def send(batch: Batch) -> asyncio.Future[object]:
            raise OSError("the core is gone")

        core.outbox = Outbox(send, core.read)
    await core.push("a", 1)
    await asyncio.sleep(0.01)

    with pytest.raises(TargetFailed, match="the core is gone"):
        await core.push("a", 1)
    core.outbox.forget("a")
    await core.push("a", 1)
