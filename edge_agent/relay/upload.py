"""The body of a request on its way to an upstream, of which only a piece is held at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from starlette.requests import Request

from picospec.gateway.errors import ApiError, ClientGone

HEAD_S: Final = 600.0
"""How long an answer may take to begin, once the last piece of its request was taken."""


class Upload:
    """It is read from the client no faster than the upstream takes it."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.complete = asyncio.Event()
        """It is set once the client has sent all of it."""

        self.deadline: asyncio.Timeout | None = None
        """The deadline of the answer's head, which each piece puts off, until it is there."""

        self._taken_bytes = 0
        self.error: ApiError | None = None
        """Why it could not be read, if that is so: the HTTP client does not say."""

    @property
    def text_bytes(self) -> int:
        """How many bytes of text came: none of a body that is no JSON, such as a recording."""
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
        """Return the next piece, which may be empty; the last one may be the last that is
        asked for. Raises ApiError."""
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
