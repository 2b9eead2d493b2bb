"""Choices run side by side; nothing is left running, and nobody runs ahead of the listener."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from gateway.errors import ClientGone, EngineFault
from gateway.performing import perform, unless_gone
from gateway.reading import Said


async def silence(_: int, __: Said) -> None:
    return


async def test_every_voice_is_heard_in_its_own_order() -> None:
    heard: list[tuple[int, str]] = []

    async def voice(words: str) -> AsyncGenerator[Said]:
        for word in words:
            await asyncio.sleep(0)
            yield Said(word, 1)
        yield Said("", 0, finish="stop")

    async def emit(index: int, said: Said) -> None:
        heard.append((index, said.text))

    await perform([voice("abc"), voice("xy")], emit)

    assert [text for index, text in heard if index == 0] == ["a", "b", "c", ""]
    assert [text for index, text in heard if index == 1] == ["x", "y", ""]
    assert heard[:2] == [(0, "a"), (1, "x")]


async def test_a_slow_listener_holds_the_voices_back() -> None:
    said_so_far = 0
    listening = asyncio.Semaphore(3)

    async def voice() -> AsyncGenerator[Said]:
        nonlocal said_so_far
        while True:
            said_so_far += 1
            yield Said("a", 1)
            await asyncio.sleep(0)

    async def emit(_: int, __: Said) -> None:
        await listening.acquire()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await perform([voice()], emit)

    assert said_so_far <= 6  # three taken, one in the listener's hands, one waiting, one said


async def test_the_first_error_closes_all_voices_and_is_raised_as_itself() -> None:
    closed: list[str] = []

    async def patient() -> AsyncGenerator[Said]:
        try:
            yield Said("a", 1)
            await asyncio.Event().wait()
        finally:
            closed.append("patient")

    async def lame() -> AsyncGenerator[Said]:
        yield Said("b", 1)
        raise EngineFault("lame")

    with pytest.raises(EngineFault, match="lame"):
        await perform([patient(), lame()], silence)

    assert closed == ["patient"]
    assert len(asyncio.all_tasks()) == 1


async def test_work_is_cancelled_when_the_client_goes_away() -> None:
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
            await unless_gone(receive, work)

    assert ended.is_set()
    assert len(asyncio.all_tasks()) == 1


async def test_work_that_ends_first_is_returned_and_nobody_listens_on() -> None:
    async def receive() -> dict[str, object]:
        await asyncio.Event().wait()
        return {}

    async def work() -> int:
        return 7

    assert await unless_gone(receive, work) == 7
    assert len(asyncio.all_tasks()) == 1
