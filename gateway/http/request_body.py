"""Limits how much a client sends as its request's body, and how long it may take for that.

A body that is refused is still read for a while: a connection that is closed while the client
sends is reset, and the client would see that instead of the answer.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from picospec.gateway.errors import ClientGone, RequestTimeout, TooLarge

MAX_BODY_BYTES: Final = 64 << 20
"""Bodies have at most so many bytes where no setting and no route has a lower limit. It is the
text of a context of two million tokens."""

PATIENCE_S: Final = 30.0
"""How long a body may take, in seconds, besides the time for what has come of it. A client
sends a body at once, so this is for a link that stalls and comes back."""

LEAST_BYTES_PER_S: Final = 8000
"""The rate that every link should have, 64 kbit/s; a body that comes more slowly is cut. A
client that sends a byte now and then would hold its request for hours otherwise."""

LINGER_S: Final = 5.0
LINGER_BYTES: Final = 64 << 20
"""How long, and how much, is read of a body that is refused: at 100 Mbit/s both are about the
same."""

STRANGERS_BYTES: Final = 1 << 20
"""How much is read where the request was not let in: the body of an honest client whose key is
wrong, and not more of a flood."""


async def read_body(request: Request, limit_bytes: int | None = None) -> bytes:
    """Return a request's whole body; limit_bytes: most bytes of it, if less than the service's
    own limit. Raises TooLarge, RequestTimeout or ClientGone."""
    if limit_bytes is not None:
        request.state.body.limit(limit_bytes)
    try:
        body = await request.body()
    except ClientDisconnect as error:
        raise ClientGone("the client went away before its request was complete") from error
    request.state.body.check(len(body))  # it may have been read with a higher limit
    return body


class RequestBody:
    """The body of one request, which the app finds in `scope["state"]`."""

    def __init__(self, scope: Scope, receive: Receive, limit_bytes: int) -> None:
        self._scope = scope
        self._receive = receive
        self._limit_bytes = limit_bytes
        self._taken_bytes = 0
        self._linger_bytes = STRANGERS_BYTES
        self._began: float | None = None
        self._complete = self._stalled = False

    def admitted(self) -> Receive:
        """Return what the app reads the body by. Raises TooLarge like `limit`."""
        self._linger_bytes = LINGER_BYTES
        self._scope["state"]["body"] = self
        self.limit(self._limit_bytes)
        return self._read

    def limit(self, limit_bytes: int) -> None:
        """Take no more than this. Raises TooLarge for what the Content-Length announces."""
        self._limit_bytes = min(self._limit_bytes, limit_bytes)
        announced = Headers(scope=self._scope).get("content-length", "")
        if announced.isdigit() and int(announced) > self._limit_bytes:
            raise self._too_large()

    async def _read(self) -> Message:
        """Return the next message. Raise TooLarge, or RequestTimeout when it does not come;
        once the body is complete, wait for the disconnect without a limit."""
        if self._complete:
            return await self._receive()
        now = asyncio.get_running_loop().time()
        self._began = now if self._began is None else self._began
        allowed_s = PATIENCE_S + self._taken_bytes / LEAST_BYTES_PER_S
        try:
            async with asyncio.timeout_at(self._began + allowed_s):
                message = await self._take()
        except TimeoutError:
            self._stalled = True
            reason = f"the request's body did not come within {allowed_s:.0f} s"
            raise RequestTimeout(reason) from None
        self.check(self._taken_bytes)
        return message

    def check(self, taken_bytes: int) -> None:
        """Raise TooLarge if that is more than may be taken."""
        if taken_bytes > self._limit_bytes:
            raise self._too_large()

    async def refuse(self, response: Response, send: Send, *, briefly: bool = False) -> None:
        """Send a response to a request whose body may not have been read: read it first, for
        some time, as a server may close the connection with the response. briefly: read no more
        than of a request that was not let in."""
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
        """Whether the client sends its body only when it is asked for (RFC 9110, 10.1.1)."""
        expects = Headers(scope=self._scope).get("expect", "").lower() == "100-continue"
        return expects and not self._taken_bytes

    async def _take(self) -> Message:
        message = await self._receive()
        self._taken_bytes += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)  # or the client has gone
        return message

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body exceeds {self._limit_bytes} bytes")
