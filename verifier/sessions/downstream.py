"""A session's messages are streamed as its response body, or handed to the upload stream if its
edge asks.

Headers are sent with the first body message, so one is sent at once. In a silence a Heartbeat
is sent at intervals, so that the edge soon notices a lost link or process. The stream ends
after a Finish or a Fault, or when the client goes away; the session ends with it.

If the edge asks for it, the rest of the messages goes down its upload stream instead. Then
the session also ends with that stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from starlette.responses import Response
from starlette.types import Message as AsgiMessage
from starlette.types import Receive, Scope, Send

from gateway import http
from gateway.errors import ClientGone
from gateway.http import connected, send_to_client
from gateway.request_context import RequestContext
from speculation import wire
from speculation.messages import (
    STREAM_HEARTBEAT_S,
    Fault,
    Multiplexed,
)
from verifier.sessions.multiplexed_stream import MultiplexedStream
from verifier.sessions.session import STREAM_HEARTBEAT, Session

CONTENT_TYPE: Final = "application/vnd.picospec"

KEEP_S: Final = 20.0
"""A stream whose session is multiplexed carries a Heartbeat at this interval: proxies close a
silent one after a minute or more."""

_GONE: Final = Fault("cancelled", "nobody reads the session's stream")
_MULTIPLEXED: Final = wire.encode(Multiplexed())
START: Final[AsgiMessage] = {
    "type": "http.response.start",
    "status": 200,
    "headers": (
        (b"content-type", CONTENT_TYPE.encode()),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
    ),
}


class Downstream(Response):
    """Responds with a session's stream. It owns the session, and ends it when it ends."""

    def __init__(self, session: Session, context: RequestContext) -> None:
        super().__init__()
        self._session = session
        self._context = context
        self._sent_at = 0.0
        self._sends = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with connected(receive):
                await self._stream(send)
            # a server reports our own end as a disconnect
            await send_body(send, b"", more=False)
        except ClientGone as gone:
            self._context.outcome.cut(gone)
        finally:
            self._session.cancel(_GONE)

    async def _stream(self, send: Send) -> None:
        await send_to_client(send, START)
        await send_body(send, wire.encode(self._session.opened))
        self._sent_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(None) as unread:
                with self._watched(unread):
                    await self._send_entries(send)
        except TimeoutError as error:
            reason = f"the client read nothing for {http.UNREAD_S:g} s"
            raise ClientGone(reason) from error
        except OSError as error:
            raise ClientGone("the client went away") from error

    async def _send_entries(self, send: Send) -> None:
        session = self._session
        while entries := await session.read():
            frames = b"".join([entry.frame for entry in entries])
            if (multiplexed := session.multiplexed) is not None and not multiplexed.is_over:
                multiplexed.carry(session.name, partial(session.cancel, _GONE))
                try:
                    await self._write(send, frames + _MULTIPLEXED)
                    return await self._multiplex(multiplexed, send)
                finally:
                    multiplexed.leave(session.name)
            await self._write(send, frames)
            self._sent_at = asyncio.get_running_loop().time()

    async def _multiplex(self, multiplexed: MultiplexedStream, send: Send) -> None:
        """Have the further entries go to an upload stream, until the last one."""
        loop, session = asyncio.get_running_loop(), self._session

        def write(frame: bytes) -> None:
            multiplexed.write(session.name, frame)
            self._sent_at = loop.time()

        session.multiplex(write)
        while not session.ending:
            try:
                async with asyncio.timeout(KEEP_S):
                    await session.read()
            except TimeoutError:
                await self._write(send, STREAM_HEARTBEAT.frame)
        if multiplexed.is_over:
            await send_body(send, b"", more=False)
            raise ClientGone("the client's upload stream has ended")

    async def _write(self, send: Send, frames: bytes) -> None:
        self._sends = True
        await send({"type": "http.response.body", "body": frames, "more_body": True})
        self._sends = False

    @contextmanager
    def _watched(self, unread: asyncio.Timeout) -> Iterator[None]:
        """Have a Heartbeat sent in each silence, and end the stream if its client does not
        read. One
        timer looks after both: a timer for each message costs as much as its bytes."""
        loop = asyncio.get_running_loop()

        def look() -> None:
            silent_s = loop.time() - self._sent_at
            if self._sends and silent_s >= http.UNREAD_S:
                return unread.reschedule(loop.time())
            if silent_s >= STREAM_HEARTBEAT_S and not self._sends:
                self._session.heartbeat()
            left_s = STREAM_HEARTBEAT_S - silent_s
            self._timer = loop.call_later(left_s if left_s > 0 else STREAM_HEARTBEAT_S, look)

        self._timer = loop.call_later(STREAM_HEARTBEAT_S, look)
        try:
            yield
        finally:
            self._timer.cancel()


async def send_body(send: Send, data: bytes, *, more: bool = True) -> None:
    """Send a part of a response's body. Raises ClientGone."""
    body: AsgiMessage = {"type": "http.response.body", "body": data, "more_body": more}
    await send_to_client(send, body)
