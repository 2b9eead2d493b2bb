"""Run the choices of one request side by side, for as long as somebody is listening.

Everything started here has ended when these functions return or raise: the engine's generators
are closed, which cancels their work at both ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

from starlette.types import Receive

from gateway.errors import ClientGone
from gateway.reading import Said

T = TypeVar("T")
Voice = AsyncGenerator[Said]
Emit = Callable[[int, Said], Awaitable[None]]


async def perform(voices: Sequence[Voice], emit: Emit) -> None:
    """Give every Said of every voice to `emit(index, said)`, one at a time, as they come.

    A slow `emit` holds the voices back: at most one Said a voice waits. The first error ends
    all voices and is raised as itself.
    """
    heard: asyncio.Queue[tuple[int, Said]] = asyncio.Queue(maxsize=len(voices))
    try:
        async with asyncio.TaskGroup() as group:
            for index, voice in enumerate(voices):
                group.create_task(_follow(index, voice, heard))
            await _emit_all(len(voices), heard, emit)
    except BaseExceptionGroup as errors:
        raise _first(errors) from errors


async def unless_gone(receive: Receive, work: Callable[[], Awaitable[T]]) -> T:
    """Return what `work` returns; when the client goes away first, cancel it, raise ClientGone.

    The request's body must have been read.
    """
    try:
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(_watch(receive))
            result = await work()
            watch.cancel()
    except BaseExceptionGroup as errors:
        raise _first(errors) from errors
    return result


async def _follow(index: int, voice: Voice, heard: asyncio.Queue[tuple[int, Said]]) -> None:
    async with aclosing(voice):
        async for said in voice:
            await heard.put((index, said))


async def _emit_all(voices: int, heard: asyncio.Queue[tuple[int, Said]], emit: Emit) -> None:
    while voices:
        index, said = await heard.get()
        await emit(index, said)
        voices -= said.finish is not None


async def _watch(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientGone("the client went away")


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
