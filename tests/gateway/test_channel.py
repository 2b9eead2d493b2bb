"""Whatever is written, read and cancelled: each value comes once, in order, within a bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, nullcontext, suppress
from functools import partial

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.channel import Channel, ChannelFull, as_generator

BOUND = WRITERS = 2
ACTION = st.sampled_from(
    ["put", "send", "cut a writer", "take", "next", "cut the reader", "turn"]
)


class World:
    """Writers, each of which writes (writer, number) until it is cut, and one reader."""

    def __init__(self) -> None:
        self.channel = Channel[tuple[int, int]](BOUND)
        self.written = list[tuple[int, int]]()
        self.read = list[tuple[int, int]]()
        self.sending: dict[int, asyncio.Task[None]] = {}
        self.reading: asyncio.Task[None] | None = None

    def do(self, action: str, writer: int) -> None:
        sending, value = self.sending.get(writer), (writer, len(self.written))
        if action == "cut a writer" and sending is not None:
            sending.cancel()
        elif action == "put":
            with suppress(ChannelFull):
                self.channel.put(value)
                self.written.append(value)
        elif action == "send" and (
            sending is None or (sending.done() and not sending.cancelled())
        ):
            self.sending[writer] = asyncio.create_task(self.send(value))
        elif action == "cut the reader" and self.reading is not None:
            self.reading.cancel()
        elif action in ("take", "next") and (self.reading is None or self.reading.done()):
            self.reading = asyncio.create_task(getattr(self, action)())

    async def send(self, value: tuple[int, int]) -> None:
        self.written.append(value)
        await self.channel.send(value)

    async def take(self) -> None:
        self.read += await self.channel.take()

    async def next(self) -> None:
        self.read.append(await anext(self.channel))

    async def settle(self) -> None:
        """Let the reader wake, end the other tasks, and read what is left."""
        for task in self.sending.values():
            task.cancel()
        reading = [self.reading] if self.reading else []
        async with asyncio.timeout(1):
            await asyncio.gather(*self.sending.values(), *reading, return_exceptions=True)
        async for value in self.channel:
            self.read.append(value)


@example([(each, 0) for each in ("put", "put", "send", "turn", "take", "turn")], False)
@given(st.lists(st.tuples(ACTION, st.integers(0, WRITERS - 1))), st.booleans())
async def test_each_value_is_read_once_and_in_order_within_the_bound(
    actions: list[tuple[str, int]], fails: bool
) -> None:
    world, most = World(), 0

    for action, writer in actions:
        world.do(action, writer)
        if action == "turn":
            for _ in range(3):  # a reader wakes, it makes room, and a writer wakes
                await asyncio.sleep(0)
            waits = any(not task.done() for task in world.sending.values())
            assert waits <= (len(world.channel) > BOUND)
            most = max(most, len(world.channel))
    world.channel.close((-1, -1), error=LookupError("lost") if fails else None)
    world.channel.put((-2, -2))
    with pytest.raises(LookupError) if fails else nullcontext():
        await world.settle()

    assert world.read == [*world.written, (-1, -1)]
    assert most <= BOUND + WRITERS
    with pytest.raises(LookupError) if fails else nullcontext():
        assert await world.channel.take() == []


async def test_all_that_waits_is_taken_at_once_and_the_bound_counts_weights() -> None:
    channel = Channel[bytes](5, len)
    channel.put(b"ab")
    channel.put(b"cde")
    with pytest.raises(ChannelFull):
        channel.put(b"f")

    taken = [await channel.take()]
    channel.put(b"fghij")
    channel.close()
    taken += [await channel.take(), await channel.take()]

    assert taken == [[b"ab", b"cde"], [b"fghij"], []]


async def test_closing_a_generator_early_cancels_the_work_and_waits_for_its_end() -> None:
    channel, ended = Channel[int](BOUND), list[str]()

    async def work() -> None:
        try:
            while True:
                await channel.send(1)
        finally:
            await asyncio.sleep(0)
            ended.append("yes")

    generator: AsyncGenerator[int] = as_generator(work, channel)
    async with aclosing(generator):
        await anext(generator)

    assert ended == ["yes"]
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("error", [None, LookupError("gone")])
async def test_a_generator_ends_as_its_work_does(error: LookupError | None) -> None:
    channel, received = Channel[int](BOUND), list[int]()

    async def work(error: Exception | None) -> None:
        for value in range(3 * BOUND):
            await channel.send(value)
        if error is not None:
            raise error

    async def read() -> None:
        async for value in as_generator(partial(work, error), channel):
            received.append(value)

    with pytest.raises(LookupError, match="gone") if error else nullcontext():
        await read()

    assert received == list(range(3 * BOUND))
    assert len(asyncio.all_tasks()) == 1
