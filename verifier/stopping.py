"""Ends the sessions at SIGTERM, and only then lets the server close.

The server waits for responses that are being sent, and ours last as long as a session: without
this it would wait until it is killed. It still handles SIGINT, which we send at the end.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager


@asynccontextmanager
async def ended_by_sigterm(end: Callable[[], Awaitable[None]]) -> AsyncGenerator[None]:
    """Within it, SIGTERM awaits `end` once and then sends SIGINT. Main thread only."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    async def stop() -> None:
        await asked.wait()
        await end()
        os.kill(os.getpid(), signal.SIGINT)

    stopping = asyncio.create_task(stop())
    loop.add_signal_handler(signal.SIGTERM, asked.set)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        if not asked.is_set():
            stopping.cancel()
        await asyncio.wait([stopping])
