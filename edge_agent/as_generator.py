"""Turns a coroutine that emits values into a generator that yields them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

T = TypeVar("T")

QUEUE_ITEMS: Final = 16
"""Values that may wait for a slow reader before `emit` waits, and so the link. One more of each
task that emits may be there."""


@dataclass(frozen=True, slots=True)
class _End:
    error: Exception | None = None


async def as_generator(
    work: Callable[[Callable[[T], Awaitable[None]]], Awaitable[None]],
) -> AsyncGenerator[T]:
    """Yield what `work(emit)` emits, and raise what it raises.

    What was emitted is yielded, even if the wait for room that follows is cancelled. Closing
    the generator cancels the work and returns when it has ended. The work has a task of its
    own, because a generator must not yield inside a TaskGroup.
    """
    items: asyncio.Queue[T | _End] = asyncio.Queue()
    taken = asyncio.Event()

    async def emit(item: T) -> None:
        items.put_nowait(item)
        while items.qsize() > QUEUE_ITEMS:
            taken.clear()
            await taken.wait()

    async def run() -> None:
        end = _End()
        try:
            await work(emit)
        except Exception as error:  # raised again by the generator
            end = _End(error)
        items.put_nowait(end)

    task = asyncio.create_task(run())
    try:
        while not isinstance(item := await items.get(), _End):
            taken.set()
            yield item
        if item.error is not None:
            raise item.error
    finally:
        task.cancel()
        await asyncio.wait([task])
