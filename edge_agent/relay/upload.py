"""The body of a request on its way to an upstream, of which only a piece is held at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from starlette.requests import ClientDisconnect, Request

from picospec.edge_agent.link.uplink import ANSWER_TIMEOUT_S
from picospec.gateway.errors import ApiError, ClientGone


class Upload:
    """It is read from the client no faster than the upstream takes it."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.complete = asyncio.Event()
        """It is set once the client has sent all of it."""

        self.deadline: asyncio.Timeout | None = None
        """The deadline of the answer's head, which each piece puts off; None once it is there."""

        self._taken_bytes = 0
        self.error: ApiError | None = None
        """Why it could not be read, if that is so: the HTTP client says only that it was not."""

    @property
    def text_bytes(self) -> int:
        """How many bytes of text came: none of a body that is no JSON, such as a recording."""
        is_json = self._request.headers.get("content-type", "").startswith("application/json")
        return self._taken_bytes if is_json else 0

    async def pieces(self) -> AsyncGenerator[bytes]:
        try:
            async for piece in self._request.stream():
                self._taken_bytes += len(piece)
                if self.deadline is not None and not self.deadline.expired():
                    now = asyncio.get_running_loop().time()
                    self.deadline.reschedule(now + ANSWER_TIMEOUT_S)
                if piece:
                    yield piece
        except ClientDisconnect:
            self.error = ClientGone("the client went away before its request was complete")
            raise
        except ApiError as error:
            self.error = error
            raise
        self.complete.set()
