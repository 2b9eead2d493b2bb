"""Drains a service at a signal, and closes its server only then.

While a service drains, its port goes on answering. SIGTERM begins draining; another signal,
which the caller names, stops the service without waiting for anything.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

from picospec.gateway.drain import Drain


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

    stopping = asyncio.create_task(stop())
    loop.add_signal_handler(signal.SIGTERM, terminate)
    loop.add_signal_handler(at_once, drain.hurry)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, at_once):
            loop.remove_signal_handler(number)
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
