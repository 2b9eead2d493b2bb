"""From a coroutine that emits to a generator that yields."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

T = TypeVar("T")

ITEMS: Final = 16
"""Waiting for a slow reader; then the work waits too, and the link's flow control after it."""


@dataclass(frozen=True, slots=True)
class _End:
    error: Exception | None


async def as_generator(
    work: Callable[[Callable[[T], Awaitable[None]]], Awaitable[None]],
) -> AsyncGenerator[T]:
    """Yield what `work(emit)` emits, and raise what it raises.

    Closing the generator cancels the work and returns when it has ended. The work has a task of
    its own, for a generator must not yield inside a TaskGroup.
    """
    items: asyncio.Queue[T | _End] = asyncio.Queue(ITEMS)

    async def run() -> None:
        try:
            await work(items.put)
        except Exception as error:  # handed over to whoever iterates
            await items.put(_End(error))
        else:
            await items.put(_End(None))

    task = asyncio.create_task(run())
    try:
        while not isinstance(item := await items.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        task.cancel()
        await asyncio.wait([task])
