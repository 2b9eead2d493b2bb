"""Sends a session's drafts without waiting, in a few repeatable requests at a time.

Messages sent while all requests are in flight go with the next one. The verifier drops what it
has already received, so a request that failed is simply sent again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from picospec.gateway.errors import Unavailable
from picospec.speculation.protocol import wire
from picospec.speculation.protocol.messages import Pushed

IN_FLIGHT: Final = 8
"""At most this many requests are in flight: one every 25 ms at a round trip of 200 ms. More
would only queue in the network."""

MAX_MESSAGES: Final = 64
"""A request has at most this many messages, which a verifier takes in within a millisecond or
two: hundreds may wait if the way up was cut, and the way down was not."""

PAUSES_S: Final = (0.0, 0.1, 1.0)
"""A failed request waits this many seconds before each further attempt. When the last one
fails, the session is given up and opened anew."""

Post = Callable[[str, bytes], Awaitable[None]]
"""Post(session, frames) raises gateway.errors.ApiError."""


class Posts:
    """The messages of one session.

    Its memory is bounded: only messages of the newest epoch wait, at most `max_ahead` draft
    tokens.
    """

    def __init__(self, post: Post) -> None:
        self._post = post
        self._epoch = 0
        self._waiting: list[Pushed] = []
        self._sendable = asyncio.Event()

    def send(self, message: Pushed) -> None:
        """Queue a message, and drop queued ones of an older epoch, which are void."""
        if message.epoch > self._epoch:
            self._epoch = message.epoch
            self._waiting.clear()
        self._waiting.append(message)
        self._sendable.set()

    async def run(self, session: str) -> None:
        """Send until cancelled. Raises gateway.errors.ApiError."""
        room = asyncio.Semaphore(IN_FLIGHT)
        async with asyncio.TaskGroup() as posts:
            while True:
                await room.acquire()
                await self._sendable.wait()
                messages = self._waiting[:MAX_MESSAGES]
                del self._waiting[:MAX_MESSAGES]
                if not self._waiting:
                    self._sendable.clear()
                frames = b"".join(map(wire.encode, messages))
                posts.create_task(self._deliver(session, frames, self._epoch, room))

    async def _deliver(
        self, session: str, frames: bytes, epoch: int, room: asyncio.Semaphore
    ) -> None:
        try:
            for pause_s in PAUSES_S:
                try:
                    return await self._post(session, frames)
                except Unavailable:
                    await asyncio.sleep(pause_s)
                    if epoch != self._epoch:
                        return  # the messages are void
            await self._post(session, frames)
        finally:
            room.release()
