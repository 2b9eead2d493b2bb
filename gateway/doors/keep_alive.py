"""Comments in an event stream that has nothing to show yet.

A long prompt may take minutes to read. Proxies and clients give up on a connection on which
nothing comes for so long; clients skip a comment, as the standard of server-sent events says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

COMMENT: Final = b": keep-alive\n\n"


async def keep_alive(
    begun: asyncio.Event, comment: Callable[[], Awaitable[None]], interval_s: float
) -> None:
    """Await `comment()` every `interval_s` seconds until `begun` is set."""
    while not begun.is_set():
        try:
            async with asyncio.timeout(interval_s):
                await begun.wait()
        except TimeoutError:
            await comment()
