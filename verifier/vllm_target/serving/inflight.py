"""A session's messages on their way into the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Final

from picospec.verifier.target import TargetFailed

MAX_IN_FLIGHT: Final = 64
"""So many messages of a session may be on their way to the engine, which takes them in between
two steps. An edge that sends more within a step waits."""


class Inflight:
    """Sends without waiting for the engine, whose complaints come with a session's frames."""

    def __init__(self) -> None:
        self._sending: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    async def send(self, push: Callable[[], Coroutine[None, None, None]]) -> None:
        """Start pushing, in the order of the calls; wait only while too much is on its way.

        Raises TargetFailed if vLLM did not take in an earlier message.
        """
        while len(self._sending) >= MAX_IN_FLIGHT:
            await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
        if self._failure is not None:
            raise TargetFailed(f"not delivered: {self._failure}") from self._failure
        task = asyncio.create_task(push())
        self._sending.add(task)
        task.add_done_callback(self._sent)
        await asyncio.sleep(0)  # the task's first step puts the message on the socket

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        if not task.cancelled():
            self._failure = self._failure or task.exception()

    def cancel(self) -> None:
        """Stop waiting for the engine."""
        for task in self._sending:
            task.cancel()
