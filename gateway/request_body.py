"""Limits the size of a request's body, and the time in which a client may send it.

A refused body is still read for a while: a connection that is closed while the client sends
is reset, and the client would see the reset instead of the answer.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.errors import ClientGone, RequestTimeout, TooLarge

MAX_BODY_BYTES: Final = 64 << 20
"""Bodies have at most this many bytes, or get a 413, if no setting and no route has a lower
limit: the text of a context of two million tokens."""

PATIENCE_S: Final = 30.0
"""A body may take this many seconds, and more for each byte that has come; else it gets a 408.
A client sends a body at once, so this is for a link that stalls and comes back."""

MIN_BYTES_PER_S: Final = 8000
"""Every link should have this rate, 64 kbit/s; a slower body is cut. Otherwise a client that
sends a byte now and then would hold its request for hours."""

LINGER_S: Final = 5.0
"""A refused body is read for this many seconds, so that its sender gets the answer, and no
reset."""

LINGER_BYTES: Final = 64 << 20
"""A refused body is read up to this size: at 100 Mbit/s, both limits are about the same."""

STRANGERS_BYTES: Final = 1 << 20
"""If the request was not admitted, this many bytes are read: enough for the body of an honest
client with a wrong key, and no more of a flood."""


async def read_body(request: Request, limit_bytes: int | None = None) -> bytes:
    """Return a request's whole body. limit_bytes: limit of its size, if lower than the
    service's own limit. Raises TooLarge, RequestTimeout, ClientGone, or Overloaded if the
    tenant's requests hold too many bytes."""
    if limit_bytes is not None:
        request.state.body.limit(limit_bytes)
    request.state.body.is_held = True
    try:
        body = await request.body()
    except ClientDisconnect as error:
        raise ClientGone("the client went away before its request was complete") from error
    request.state.body.check(len(body))  # it may have been read with a higher limit
    return body


class RequestBody:
    """Reads the body of one request; the app finds this object in `scope["state"]`."""

    def __init__(self, scope: Scope, receive: Receive, limit_bytes: int) -> None:
        self._scope = scope
        self._receive = receive
        self._limit_bytes = limit_bytes
        self._taken_bytes = 0
        self._linger_bytes = STRANGERS_BYTES
        self._began: float | None = None
        self._complete = self._stalled = False
        self.is_held = False
        """True if the whole body is read before anything is made of it."""

    def admitted(self) -> Receive:
        """Return the function by which the app reads the body. Raises TooLarge like `limit`."""
        self._linger_bytes = LINGER_BYTES
        self._scope["state"]["body"] = self
        self.limit(self._limit_bytes)
        return self._read

    def limit(self, limit_bytes: int) -> None:
        """Lower the limit to this. Raises TooLarge if the Content-Length exceeds it."""
        self._limit_bytes = min(self._limit_bytes, limit_bytes)
        announced = Headers(scope=self._scope).get("content-length", "")
        if announced.isdigit() and int(announced) > self._limit_bytes:
            raise self._too_large()

    async def _read(self) -> Message:
        """Return the next message; once the body is complete, wait for the disconnect without a
        limit. Raises TooLarge, or RequestTimeout if no message comes in time."""
        if self._complete:
            return await self._receive()
        now = asyncio.get_running_loop().time()
        self._began = now if self._began is None else self._began
        allowed_s = PATIENCE_S + self._taken_bytes / MIN_BYTES_PER_S
        try:
            async with asyncio.timeout_at(self._began + allowed_s):
                message = await self._take()
        except TimeoutError:
            self._stalled = True
            reason = f"the request's body did not come within {allowed_s:.0f} s"
            raise RequestTimeout(reason) from None
        self.check(self._taken_bytes)
        if self.is_held:
            self._scope["state"]["context"].hold(self._taken_bytes)
        return message

    async def next_piece(self, until: float) -> bytes | None:
        """Return the next piece of a body that may be of any length, and take any time; None
        after its end, and if the client has left. until: by the event loop's clock. Raises
        TimeoutError."""
        if self._complete:
            return None
        async with asyncio.timeout_at(until):
            message = await self._take()
        return None if message["type"] == "http.disconnect" else message.get("body", b"")

    def check(self, taken_bytes: int) -> None:
        """Raise TooLarge if this many bytes exceed the limit."""
        if taken_bytes > self._limit_bytes:
            raise self._too_large()

    async def refuse(self, response: Response, send: Send, *, briefly: bool = False) -> None:
        """Send a response to a request whose body may not have been read: first read the body
        for some time, because a server may close the connection with the response. briefly:
        read no more than for a request that was not admitted."""
        most = STRANGERS_BYTES if briefly else self._linger_bytes
        if not (self._complete or self._stalled or self._waits_for_leave):
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    while not self._complete and self._taken_bytes < most:
                        await self._take()
        if not self._complete and self._scope.get("http_version", "").startswith("1"):
            response.headers["connection"] = "close"
        await response(self._scope, self._receive, send)

    @property
    def _waits_for_leave(self) -> bool:
        """True if the client sends its body only when asked for it (RFC 9110, 10.1.1)."""
        expects = Headers(scope=self._scope).get("expect", "").lower() == "100-continue"
        return expects and not self._taken_bytes

    async def _take(self) -> Message:
        message = await self._receive()
        self._taken_bytes += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)  # or the client has gone
        return message

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body exceeds {self._limit_bytes} bytes")
