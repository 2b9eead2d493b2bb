"""Choices stream concurrently; nothing is left running, and none runs ahead of the client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, nullcontext, suppress
from functools import partial
from itertools import count, repeat

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.channel import Channel, ChannelFull, as_generator
from gateway.errors import ClientGone, EngineFault
from gateway.http import connected
from gateway.output.detokenise import Detokeniser, StopConditions, TextDelta
from gateway.output.stream import (
    QUEUED,
    ChoiceStream,
    stream_choice,
    together,
)
from gateway.ports import Delta


def detokeniser(stop: str) -> Detokeniser:
    return Detokeniser(lambda token: bytes([token]), StopConditions(strings=[stop]))


async def test_a_stop_string_closes_the_engine_before_the_last_text() -> None:
    events: list[str] = []

    async def engine() -> AsyncGenerator[Delta]:
        try:
            yield Delta(tuple(b"ab"))
            yield Delta(tuple(b"cd"))
            events.append("went on")
        finally:
            events.append("closed")

    async for _, delta in stream_choice(0, engine(), detokeniser("c")):
        events.append(delta.text)

    assert events == ["ab", "closed", ""]


async def test_an_engine_that_ends_without_a_finish_is_at_fault() -> None:
    async def engine() -> AsyncGenerator[Delta]:
        yield Delta(tuple(b"ab"))

    with pytest.raises(EngineFault, match="without saying why"):
        [delta async for delta in stream_choice(0, engine(), detokeniser("c"))]


async def stream(
    texts: Iterable[str],
    index: int = 0,
    *,
    then: Exception | None = None,
    closed: list[int] | None = None,
) -> ChoiceStream:
    """Yield texts, one a turn of the loop, and then a finish or an error."""
    try:
        for text in texts:
            yield index, TextDelta(text, 1)
            await asyncio.sleep(0)
        if then is not None:
            raise then
        yield index, TextDelta("", 0, finish="stop")
    finally:
        if closed is not None:
            await asyncio.sleep(0)  # as the end of a session does
            closed.append(index)


@pytest.mark.parametrize(("choices", "most"), [(1, 1), (3, QUEUED + 4)])
async def test_a_slow_client_slows_the_streams_down(choices: int, most: int) -> None:
    generated = count()
    streams = [stream(map(str, generated)) for _ in range(choices)]

    async def stall() -> None:
        async with together(streams) as deltas:
            async for _ in deltas:
                await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stall(), 0.05)

    assert next(generated) <= most


@pytest.mark.parametrize("choices", [1, 2])
async def test_whoever_leaves_has_closed_all_streams(choices: int) -> None:
    closed: list[int] = []
    streams = [stream(repeat("a"), index, closed=closed) for index in range(choices)]

    async with together(streams) as deltas:
        await anext(deltas)

    assert sorted(closed) == list(range(choices))
    assert len(asyncio.all_tasks()) == 1


async def test_the_first_error_closes_all_streams_and_is_raised_as_itself() -> None:
    closed: list[int] = []
    streams = [stream(repeat("a"), closed=closed), stream("b", 1, then=EngineFault("broken"))]

    with pytest.raises(EngineFault, match="broken"):
        async with together(streams) as deltas:
            [delta async for delta in deltas]

    assert closed == [0]
    assert len(asyncio.all_tasks()) == 1


async def test_an_error_comes_after_all_that_its_stream_showed_to_a_slow_client() -> None:
    emitted = ["", ""]
    streams = [stream("abc", index, then=EngineFault("lost")) for index in range(2)]

    async def read_slowly() -> None:
        async with together(streams) as deltas:
            async for index, delta in deltas:
                for _ in range(3):
                    await asyncio.sleep(0)
                emitted[index] += delta.text

    with pytest.raises(EngineFault, match="lost"):
        await read_slowly()

    assert "abc" in emitted


async def test_work_is_cancelled_when_the_client_disconnects() -> None:
    ended = asyncio.Event()

    async def receive() -> dict[str, object]:
        await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(ClientGone):
        async with asyncio.timeout(1), connected(receive):
            await work()

    assert ended.is_set()
    assert len(asyncio.all_tasks()) == 1


async def test_work_that_ends_first_leaves_nothing_behind() -> None:
    async def receive() -> dict[str, object]:
        await asyncio.Event().wait()
        return {}

    async with connected(receive):
        await asyncio.sleep(0)

    assert len(asyncio.all_tasks()) == 1


# A channel: whatever is written, read and cancelled, each value comes once and in order.

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
