"""Another service to which requests are passed on, by connections that nothing else uses.

What is relayed may be large and its client slow. On the connection of sessions it would hold up
their messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final

from picospec.edge_agent.link import upstream_errors
from picospec.edge_agent.link.connection import (
    REQUEST_TIMEOUT_S,
    Connection,
    Response,
    whole,
)
from picospec.edge_agent.link.upstream_errors import Peer

UPSTREAM: Final = Peer("upstream", "PICOSPEC_RELAY_KEY")


class Upstream:
    """Nothing is tried again, and no redirect is followed."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def name(self) -> str:
        """What `x-picospec-relayed` and the log say."""
        return self._connection.peer.name

    @asynccontextmanager
    async def ask(
        self, target: str, headers: Mapping[str, str], body: bytes | AsyncIterator[bytes]
    ) -> AsyncGenerator[Response]:
        """Put a request. Give its answer, which is still to be read. Raises ApiError."""
        async with self._connection.stream("POST", target, body, headers) as response:
            if response.status != HTTPStatus.OK:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    answer = await whole(response)
                    raise upstream_errors.from_answer(answer, self._connection.peer)
            yield response
