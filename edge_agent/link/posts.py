"""Sends a session's drafts without waiting, in a few repeatable requests at a time.

What is sent while all requests are in flight goes with the next one. The verifier drops what
it has already received, so a request that failed is simply sent again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import httpx

from picospec.edge_agent.link import upstream_errors
from picospec.edge_agent.link.health import Health
from picospec.edge_agent.link.retry import attempts
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.gateway.errors import EngineFault, Unavailable
from picospec.speculation.protocol import wire
from picospec.speculation.protocol.messages import Pushed

IN_FLIGHT: Final = 8
"""Most requests at a time: one every 25 ms at a round trip of 200 ms. More would only queue in
the network."""

MAX_MESSAGES: Final = 64
"""Most messages of a request, which a verifier takes in within a millisecond or two: hundreds
may wait where the way up was cut, and the way down was not."""

Post = Callable[[str, bytes], Awaitable[httpx.Response]]
"""Post(path, body) raises httpx.TransportError. It is called for every few draft tokens."""


class Posts:
    """The messages of one session.

    Its memory is bounded: only messages of the newest epoch wait, and the session keeps these
    within its window.
    """

    def __init__(self, post: Post, health: Health, metrics: EdgeMetrics) -> None:
        self._send = post
        self._health = health
        self._metrics = metrics
        self._epoch = 0
        self._waiting: list[Pushed] = []
        self._sendable = asyncio.Event()

    def send(self, message: Pushed) -> None:
        """Have a message sent, and drop waiting ones of an older epoch, which are void."""
        if message.epoch > self._epoch:
            self._epoch = message.epoch
            self._waiting.clear()
        self._waiting.append(message)
        self._sendable.set()

    async def run(self, path: str, window_s: float) -> None:
        """Send to `path` until cancelled.

        window_s: how long a failed request is tried again. Raises Unavailable, or EngineFault
        when the verifier answers a draft with an error.
        """
        room = asyncio.Semaphore(IN_FLIGHT)
        async with asyncio.TaskGroup() as posts:
            while True:
                await room.acquire()
                await self._sendable.wait()
                messages = self._waiting[:MAX_MESSAGES]
                del self._waiting[:MAX_MESSAGES]
                if not self._waiting:
                    self._sendable.clear()
                body = b"".join(map(wire.encode, messages))
                posts.create_task(self._deliver(path, body, self._epoch, window_s, room))

    async def _deliver(
        self, path: str, body: bytes, epoch: int, window_s: float, room: asyncio.Semaphore
    ) -> None:
        try:
            try:
                await self._post(path, body)
            except (httpx.TransportError, Unavailable):
                async for attempt in attempts(window_s):
                    with attempt:
                        if epoch == self._epoch:
                            await self._post(path, body)
        except httpx.TransportError as error:
            why = upstream_errors.reason(error)
            raise Unavailable(f"the drafts reach no verifier: {why}") from error
        finally:
            room.release()

    async def _post(self, path: str, body: bytes) -> None:
        begun = time.monotonic()
        self._metrics.posts.inc()
        self._metrics.link_bytes.labels("up").inc(len(body))
        response = await self._send(path, body)
        match response.status_code:
            case 204:
                self._health.answered(begun)
                self._metrics.rtt_s.set(self._health.rtt_s)
            case 404:
                pass  # the session has just ended, and the stream says how
            case 429:
                raise Unavailable("the verifier takes no drafts now")
            case _:
                error = upstream_errors.from_response(response)
                if isinstance(error, Unavailable):
                    raise error
                raise EngineFault(f"the verifier does not take a draft: {error.message}")
