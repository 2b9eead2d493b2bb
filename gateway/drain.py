"""Drains a service that is about to stop: it takes no new work, and running work may finish.

Work is an answer to a client, or a session of an edge. Once no work is left, or its time is
over, the answers that still run end with an error that says so; a session's owner ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Final

import structlog

from picospec.gateway.errors import Draining, Unavailable, first_error

# Runs background work: for the life of a service, or of the body of a context manager.

AGAIN_S: Final = 1.0
"""Background work that has failed begins again after this time."""


async def kept_going(work: Callable[[], Awaitable[None]]) -> None:
    """Do a service's background work, and again after an exception, which is logged: without
    the work the service would be half dead and not know it."""
    while True:
        try:
            return await work()
        except Exception:
            name = getattr(work, "__qualname__", str(work))
            structlog.get_logger("gateway").exception("background_failed", work=name)
        await asyncio.sleep(AGAIN_S)


@asynccontextmanager
async def beside(
    *meanwhile: Coroutine[None, None, object],
) -> AsyncGenerator[asyncio.TaskGroup]:
    """Run `meanwhile` until the body ends, then cancel it. Yields the tasks' TaskGroup.

    The first error of the body or of a task ends all, and is raised without its group.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(work) for work in meanwhile]
            yield tasks
            for task in running:
                task.cancel()
    except BaseExceptionGroup as errors:
        raise first_error(errors) from errors


CUT_TIMEOUT_S: Final = 1.0
"""The service waits at most this many seconds while the ends of answers are sent: a client may
not be reading."""


class Drain:
    """Counts the running work of one service, and rejects new work once draining has begun."""

    def __init__(self) -> None:
        self.begun = False
        """True once new work is rejected."""

        self.over = asyncio.Event()
        """This event is set when draining has begun and no longer waits for work."""

        self._running = 0
        self._answers: dict[asyncio.Task[object], asyncio.Timeout] = {}

    def begin(self, within_s: float) -> None:
        """Reject new work, and let running work finish within `within_s` seconds."""
        self.begun = True
        self._see_whether_over()
        asyncio.get_running_loop().call_later(within_s, self.over.set)

    def hurry(self) -> None:
        """Reject new work, and do not wait for running work."""
        self.begun = True
        self.over.set()

    def check(self) -> None:
        """Raise Draining once new work is rejected."""
        if self.begun:
            raise Draining("the service is about to stop and takes no new work")

    def enter(self) -> None:
        """Count a piece of work until `leave` is called. Raises Draining."""
        self.check()
        self._running += 1

    def leave(self) -> None:
        self._running -= 1
        self._see_whether_over()

    def _see_whether_over(self) -> None:
        if self.begun and not self._running:
            self.over.set()

    @asynccontextmanager
    async def answer(self) -> AsyncGenerator[None]:
        """Run one answer in this task.

        Raises Draining, or Unavailable if `cut` ends the answer.
        """
        self.enter()
        task = asyncio.current_task()
        try:
            async with asyncio.timeout(None) as timer:
                if task is not None:
                    self._answers[task] = timer
                yield
        except TimeoutError as error:
            if not timer.expired():
                raise
            reason = "the service stopped before the answer was complete"
            raise Unavailable(reason, code="shutting_down") from error
        finally:
            if task is not None:
                self._answers.pop(task, None)
            self.leave()

    async def cut(self) -> None:
        """End the answers that still run; wait CUT_TIMEOUT_S at most until clients know it."""
        tasks, now = list(self._answers), asyncio.get_running_loop().time()
        for timer in self._answers.values():
            if not timer.expired():
                timer.reschedule(now)
        if tasks:
            await asyncio.wait(tasks, timeout=CUT_TIMEOUT_S)
