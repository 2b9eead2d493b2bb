"""Choices stream concurrently; nothing is left running, and none runs ahead of the client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from itertools import count, repeat

import pytest

from picospec.gateway.errors import ClientGone, EngineFault
from picospec.gateway.http import connected
from picospec.gateway.output.detokenise import Detokeniser, TextDelta
from picospec.gateway.output.stream import (
    QUEUED,
    ChoiceStream,
    Order,
    Steady,
    stream_choice,
    together,
)
from picospec.gateway.ports import Delta


def detokeniser(stop: str) -> Detokeniser:
    return Detokeniser(lambda token: bytes([token]), stop_tokens=frozenset(), stops=[stop])


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


async def test_every_stream_is_emitted_in_its_own_order() -> None:
    async with together([stream("abc"), stream("xy", 1)]) as deltas:
        emitted = [(index, delta.text) async for index, delta in deltas]

    assert [text for index, text in emitted if index == 0] == ["a", "b", "c", ""]
    assert [text for index, text in emitted if index == 1] == ["x", "y", ""]
    assert emitted[:2] == [(0, "a"), (1, "x")]


@pytest.mark.parametrize(
    ("choices", "order", "most"),
    [(1, None, 1), (3, None, QUEUED + 4), (1, Steady().paced, 2 * QUEUED + 3)],
)
async def test_a_slow_client_slows_the_streams_down(
    choices: int, order: Order | None, most: int
) -> None:
    generated = count()
    streams = [stream(map(str, generated)) for _ in range(choices)]

    async def stall() -> None:
        async with together(streams, order) as deltas:
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
