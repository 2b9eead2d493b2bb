"""Hands values from the tasks that make them to one that reads them, in order and in a bound.

Each value is read once, also if a task is cancelled while it waits here. All that is left comes
before the end, or before the error that ended the work.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Generic, TypeVar

from gateway.background_work import start

T = TypeVar("T")


class ChannelFull(Exception):
    """Raised if a value that cannot wait would exceed the bound. The value is dropped."""


class Channel(Generic[T]):
    """An iterator of values. bound: the weight of all values that wait, at most. weigh: returns
    the weight of a value; each weighs 1 by default."""

    def __init__(self, bound: int, weigh: Callable[[T], int] = lambda _: 1) -> None:
        self._bound = bound
        self._weigh = weigh
        self._unread = deque[T]()
        self._weight = 0
        self._is_closed = False
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self._room = asyncio.Event()

    def __len__(self) -> int:
        return len(self._unread)

    def put(self, value: T) -> None:
        """Add a value, unless the channel is closed. Raises ChannelFull."""
        if not self._is_closed and self._weight + self._weigh(value) > self._bound:
            raise ChannelFull(f"more than {self._bound} would wait")
        self._add(value)

    async def send(self, value: T) -> None:
        """Add a value at once, and return when no more than the bound waits: so each task that
        sends may exceed it by one value."""
        self._add(value)
        while self._weight > self._bound:
            self._room.clear()
            await self._room.wait()

    def close(self, *last: T, error: Exception | None = None) -> None:
        """Add the last values, whatever the bound, and let the reader end after them, or raise
        the error."""
        for value in last:
            self._add(value)
        if not self._is_closed:
            self._is_closed, self._error = True, error
        self._wake()

    def drain(self) -> list[T]:
        """Return all values that wait."""
        values = list(self._unread)
        self._unread.clear()
        self._weight = 0
        self._room.set()
        return values

    async def take(self) -> list[T]:
        """Return all values that wait, once there are some; [] after the last."""
        if not self._unread:
            await self._filled()
        if not self._unread and self._error is not None:
            raise self._error
        return self.drain()

    def __aiter__(self) -> Channel[T]:
        return self

    async def __anext__(self) -> T:
        if not self._unread:
            await self._filled()
        if not self._unread:
            raise self._error or StopAsyncIteration
        value = self._unread.popleft()
        self._weight -= self._weigh(value)
        self._room.set()
        return value

    def _add(self, value: T) -> None:
        if not self._is_closed:
            self._unread.append(value)
            self._weight += self._weigh(value)
            self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def _filled(self) -> None:
        while not (self._unread or self._is_closed):
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader


async def as_generator(
    work: Callable[[], Awaitable[None]], channel: Channel[T]
) -> AsyncGenerator[T]:
    """Yield the values that `work` writes to the channel, and raise what it raises.

    Closing the generator cancels the work and returns when it has ended. The work has a task of
    its own, because a generator must not yield inside a TaskGroup.
    """

    async def run() -> None:
        try:
            await work()
        except Exception as error:  # raised again by the generator
            channel.close(error=error)
        else:
            channel.close()

    task = start(run())
    try:
        async for value in channel:
            yield value
    finally:
        task.cancel()
        await asyncio.wait([task])
