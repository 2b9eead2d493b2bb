"""Choices stream concurrently; nothing is left running, and none runs ahead of the client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from picospec.gateway.errors import ClientGone, EngineFault
from picospec.gateway.output.choice_stream import cancel_on_disconnect, merge, stream_choice
from picospec.gateway.output.detokenise import Detokeniser, TextDelta
from picospec.gateway.ports import Delta


def detokeniser(stop: str) -> Detokeniser:
    return Detokeniser(lambda token: bytes([token]), stop_tokens=frozenset(), stops=[stop])


async def discard(_: int, __: TextDelta) -> None:
    return


async def test_a_stop_string_closes_the_engine_before_the_last_text() -> None:
    events: list[str] = []

    async def engine() -> AsyncGenerator[Delta]:
        try:
            yield Delta(tuple(b"ab"))
            yield Delta(tuple(b"cd"))
            events.append("went on")
        finally:
            events.append("closed")

    async for delta in stream_choice(engine(), detokeniser("c")):
        events.append(delta.text)

    assert events == ["ab", "closed", ""]


async def test_an_engine_that_ends_without_a_finish_is_at_fault() -> None:
    async def engine() -> AsyncGenerator[Delta]:
        yield Delta(tuple(b"ab"))

    with pytest.raises(EngineFault, match="without saying why"):
        [delta async for delta in stream_choice(engine(), detokeniser("c"))]


async def test_every_stream_is_emitted_in_its_own_order() -> None:
    emitted: list[tuple[int, str]] = []

    async def stream(words: str) -> AsyncGenerator[TextDelta]:
        for word in words:
            await asyncio.sleep(0)
            yield TextDelta(word, 1)
        yield TextDelta("", 0, finish="stop")

    async def emit(index: int, delta: TextDelta) -> None:
        emitted.append((index, delta.text))

    await merge([stream("abc"), stream("xy")], emit)

    assert [text for index, text in emitted if index == 0] == ["a", "b", "c", ""]
    assert [text for index, text in emitted if index == 1] == ["x", "y", ""]
    assert emitted[:2] == [(0, "a"), (1, "x")]


async def test_a_slow_client_slows_the_streams_down() -> None:
    generated = 0
    reading = asyncio.Semaphore(3)

    async def stream() -> AsyncGenerator[TextDelta]:
        nonlocal generated
        while True:
            generated += 1
            yield TextDelta("a", 1)
            await asyncio.sleep(0)

    async def emit(_: int, __: TextDelta) -> None:
        await reading.acquire()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await merge([stream()], emit)

    assert generated <= 6  # three read, one being emitted, one queued, one yielded


async def test_the_first_error_closes_all_streams_and_is_raised_as_itself() -> None:
    closed: list[str] = []

    async def endless() -> AsyncGenerator[TextDelta]:
        try:
            yield TextDelta("a", 1)
            await asyncio.Event().wait()
        finally:
            closed.append("endless")

    async def failing() -> AsyncGenerator[TextDelta]:
        yield TextDelta("b", 1)
        raise EngineFault("broken")

    with pytest.raises(EngineFault, match="broken"):
        await merge([endless(), failing()], discard)

    assert closed == ["endless"]
    assert len(asyncio.all_tasks()) == 1


async def test_an_error_comes_after_all_that_its_stream_showed_to_a_slow_client() -> None:
    emitted = ""

    async def stream() -> AsyncGenerator[TextDelta]:
        for letter in "abc":
            yield TextDelta(letter, 1)
        raise EngineFault("lost")

    async def emit(_: int, delta: TextDelta) -> None:
        nonlocal emitted
        for _ in range(3):
            await asyncio.sleep(0)
        emitted += delta.text

    with pytest.raises(EngineFault, match="lost"):
        await merge([stream()], emit)

    assert emitted == "abc"


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
        async with asyncio.timeout(1):
            await cancel_on_disconnect(receive, work)

    assert ended.is_set()
    assert len(asyncio.all_tasks()) == 1


async def test_the_result_of_work_that_ends_first_is_returned() -> None:
    async def receive() -> dict[str, object]:
        await asyncio.Event().wait()
        return {}

    async def work() -> int:
        return 7

    assert await cancel_on_disconnect(receive, work) == 7
    assert len(asyncio.all_tasks()) == 1
