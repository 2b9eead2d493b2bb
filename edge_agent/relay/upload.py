"""The body of a request on its way to an upstream; only one piece is held at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from starlette.requests import Request

from picospec.gateway.errors import ApiError, ClientGone

HEAD_S: Final = 600.0
"""An answer must begin within this time after the last piece of its request was taken."""


class Upload:
    """Reads the body from the client no faster than the upstream takes it."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.complete = asyncio.Event()
        """Set once the client has sent the whole body."""

        self.deadline: asyncio.Timeout | None = None
        """The deadline of the answer's head. Each piece extends it, until the head is there."""

        self._taken_bytes = 0
        self.error: ApiError | None = None
        """The reason why the body could not be read; the HTTP client does not report it."""

    @property
    def text_bytes(self) -> int:
        """The bytes of text so far; 0 for a body that is not JSON, such as a recording."""
        is_json = self._request.headers.get("content-type", "").startswith("application/json")
        return self._taken_bytes if is_json else 0

    async def pieces(self) -> AsyncGenerator[bytes]:
        while not self.complete.is_set():
            piece = await self._next()
            if self.deadline is not None and not self.deadline.expired():
                self.deadline.reschedule(asyncio.get_running_loop().time() + HEAD_S)
            if piece:
                yield piece

    async def _next(self) -> bytes:
        """Return the next piece, which may be empty; the last one sets `complete`. Raises
        ApiError."""
        try:
            message = await self._request.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone("the client went away before its request was complete")
        except ApiError as error:
            self.error = error
            raise
        if not message.get("more_body", False):
            self.complete.set()
        piece: bytes = message.get("body", b"")
        self._taken_bytes += len(piece)
        return piece
