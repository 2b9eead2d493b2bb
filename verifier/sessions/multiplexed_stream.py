"""Sends down the answer of an upload stream, which may carry the messages of many sessions.

All that is written in one turn of the event loop, as after a pass, goes in one piece: a piece
costs more than the messages in it. The stream ends if too much waits for a client that does not
read, or for too long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from gateway.channel import Channel, ChannelFull
from gateway.errors import ClientGone
from speculation import upload_records

PART_BYTES: Final = upload_records.MAX_RECORD_BYTES // 2
"""More frames than this are cut into several records."""

MAX_UNSENT_BYTES: Final = 64 << 20
"""The answer of an upload stream ends if its edge leaves this many bytes unread, as many as a
body may have."""


class MultiplexedStream:
    """acknowledgement: the bytes that acknowledge."""

    def __init__(self, acknowledgement: bytes) -> None:
        self.is_over = False
        """True once the stream has ended."""

        self._acknowledgement = acknowledgement
        self._sessions: dict[str, Callable[[], object]] = {}
        self._unsent = Channel[bytes](MAX_UNSENT_BYTES, len)
        self._is_sending = False
        self._sent = asyncio.Event()

    def carry(self, session: str, cut: Callable[[], object]) -> None:
        """Carry a session until `leave`. cut: called if the stream ends before."""
        self._sessions[session] = cut

    def write(self, session: str, frames: bytes) -> None:
        """Send frames of a session soon, unless it has left."""
        if session not in self._sessions:
            return
        for at in range(0, len(frames), PART_BYTES):
            self._add(upload_records.encode_record(session, frames[at : at + PART_BYTES]))

    def leave(self, session: str) -> None:
        """Send soon that a session has no further messages."""
        del self._sessions[session]
        self._add(upload_records.encode_record(session))

    async def acknowledge(self, times: int) -> None:
        """Acknowledge soon, but not while a piece waits for the client: nobody may fill the
        memory by asking."""
        if self._is_sending:
            await self._next_sent()
        self._add(self._acknowledgement * times)

    def _add(self, part: bytes) -> None:
        try:
            self._unsent.put(part)
        except ChannelFull:
            self._unsent.close(error=ClientGone("the client reads too slowly"))

    async def _next_sent(self) -> None:
        self._sent.clear()
        await self._sent.wait()

    async def run(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Send until cancelled. Raises what `send` raises, and ClientGone."""
        while parts := await self._unsent.take():
            self._is_sending = True
            await send(b"".join(parts))
            self._is_sending = False
            self._sent.set()

    async def emptied(self) -> None:
        """Return when no session is carried and all has been sent."""
        while self._sessions or self._unsent or self._is_sending:
            await self._next_sent()

    def close(self) -> None:
        """Note that the stream has ended, and with it all sessions that it carries."""
        self.is_over = True
        for cut in tuple(self._sessions.values()):
            cut()
