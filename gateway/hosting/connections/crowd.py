"""The connections of one server: so many at most, and those that do nothing give way.

A connection is idle until a whole request has come, and again when its answer is complete. For
one too many the one is cut that has been idle for longest, a stranger's or that of a client,
who connects again; where all others are busy, the new one itself is cut. So nobody locks out
the others by connections on which nothing is asked, and no running answer is cut.
"""

from __future__ import annotations

import asyncio


class Crowd:
    """most: how many connections there may be."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0
        self._idle: dict[asyncio.Transport, None] = {}
        """The idle connections, in the order in which they became idle."""

    def enter(self, transport: asyncio.Transport) -> None:
        """Take in a connection, which is idle."""
        self._open += 1
        self._idle[transport] = None
        if self._open > self._most:
            longest = next(iter(self._idle))
            del self._idle[longest]
            longest.abort()  # it leaves a moment later

    def leave(self, transport: asyncio.Transport) -> None:
        self._open -= 1
        self._idle.pop(transport, None)

    def is_idle(self, transport: asyncio.Transport) -> None:
        """Count a connection as idle from now on, unless it was so before."""
        if not transport.is_closing():
            self._idle.setdefault(transport, None)

    def is_busy(self, transport: asyncio.Transport) -> None:
        self._idle.pop(transport, None)
