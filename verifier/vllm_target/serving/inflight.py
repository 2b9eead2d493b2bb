"""A session's messages on their way into the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from picospec.speculation.protocol.errors import RemoteProtocolError
from picospec.verifier.target import TargetFailed

MAX_IN_FLIGHT: Final = 64
"""Most messages of a session that the engine has not taken in. It takes them in between two
steps; an edge that sends more within a step waits."""


class Inflight:
    """Sends without waiting for the engine; keeps the first complaint until `check`."""

    def __init__(self) -> None:
        self._sending: set[asyncio.Task[None]] = set()
        self._complaint: str | None = None
        self._failure: Exception | None = None

    def check(self) -> None:
        """Raise RemoteProtocolError for a dishonest message, TargetFailed if vLLM broke."""
        if self._failure is not None:
            raise TargetFailed(f"not delivered: {self._failure}") from self._failure
        if self._complaint is not None:
            raise RemoteProtocolError(self._complaint)

    async def send(self, push: Callable[[], Awaitable[str | None]]) -> None:
        """Start pushing, in the order of the calls; wait only while too much is on its way."""
        while len(self._sending) >= MAX_IN_FLIGHT:
            await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
        task = asyncio.create_task(self._send(push))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        await asyncio.sleep(0)  # the task's first step puts the message on the socket

    async def _send(self, push: Callable[[], Awaitable[str | None]]) -> None:
        try:
            complaint = await push()
        except Exception as error:  # vLLM raises what it likes; `check` raises it again
            self._failure = error
        else:
            self._complaint = self._complaint or complaint

    def cancel(self) -> None:
        """Stop waiting for answers."""
        for task in self._sending:
            task.cancel()
