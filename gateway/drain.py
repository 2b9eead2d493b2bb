"""A signal drains a service: it takes no new work, running work may finish, and what remains is
cut.

Work is an answer to a client, or a session of an edge. Once no work is left, or its time is
over, the answers that still run end with an error that says so; a session's owner ends it.

While a service drains, its port goes on answering; its server is closed only then. SIGTERM
begins draining; another signal, which the caller names, stops the service without waiting for
anything.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import structlog

from gateway.background_work import start
from gateway.errors import Draining, Unavailable
from gateway.system import handled_signals

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


@asynccontextmanager
async def stopped_by_signals(
    drain: Drain,
    drain_timeout_s: float,
    close: Callable[[], Awaitable[object]],
    *,
    at_once: signal.Signals,
    second_is_at_once: bool,
) -> AsyncGenerator[None]:
    """Await `close` once, when the service has drained.

    second_is_at_once: True if a second SIGTERM means `at_once`. It must not if a parent passes
    signals on: a signal to the whole group of processes then arrives twice.

    A server that closes waits for responses that are being sent, and ours last as long as a
    session: without draining, it would refuse connections and wait until it is killed.
    """
    loop = asyncio.get_running_loop()

    async def stop() -> None:
        await drain.over.wait()
        await drain.cut()
        await close()

    def terminate() -> None:
        if drain.begun:
            return drain.hurry() if second_is_at_once else None
        structlog.get_logger("service").info("draining", within_s=drain_timeout_s)
        drain.begin(drain_timeout_s)

    stopping = start(stop())
    try:
        with handled_signals(loop, {signal.SIGTERM: terminate, at_once: drain.hurry}):
            yield
    finally:
        if not drain.over.is_set():
            stopping.cancel()
        await asyncio.wait([stopping])


def end_within(seconds: float) -> None:
    """End this process with status 1 after `seconds`, whatever still runs: otherwise a thread
    that hangs would keep the process alive."""

    def end() -> None:
        structlog.get_logger("service").error("did not stop; ended", within_s=seconds)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
