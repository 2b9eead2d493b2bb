"""Turns a coroutine that emits values into a generator that yields them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

T = TypeVar("T")

QUEUE_ITEMS: Final = 16
"""Values that may wait for a slow reader; beyond, `emit` waits, and so does the link."""


@dataclass(frozen=True, slots=True)
class _End:
    error: Exception | None = None


async def as_generator(
    work: Callable[[Callable[[T], Awaitable[None]]], Awaitable[None]],
) -> AsyncGenerator[T]:
    """Yield what `work(emit)` emits, and raise what it raises.

    Closing the generator cancels the work and returns when it has ended. The work has a task of
    its own, because a generator must not yield inside a TaskGroup.
    """
    items: asyncio.Queue[T | _End] = asyncio.Queue(QUEUE_ITEMS)

    async def run() -> None:
        end = _End()
        try:
            await work(items.put)
        except Exception as error:  # raised again by the generator
            end = _End(error)
        await items.put(end)

    task = asyncio.create_task(run())
    try:
        while not isinstance(item := await items.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        task.cancel()
        await asyncio.wait([task])
