"""The connection to the client of one request: whether it is there, and what is sent on it."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Final

from starlette.types import Message, Receive, Send

from picospec.gateway.beside import beside
from picospec.gateway.errors import ClientGone

UNREAD_S: Final = 60.0
"""A message may wait so long for a client that does not read. Server and system hold hundreds
of kilobytes of a stream before it has to wait at all."""


def connected(
    receive: Receive, read: asyncio.Event | None = None
) -> AbstractAsyncContextManager[asyncio.TaskGroup]:
    """Cancel the body and raise ClientGone if the client disconnects; give a group of tasks
    that end likewise.

    read: is set once the request's body has been read; None if it has been.
    """
    return beside(_disconnect(receive, read))


async def send_to_client(send: Send, message: Message) -> None:
    """Raise ClientGone when the server reports that the connection is closed, or when the
    client reads nothing for so long that it is as good as gone."""
    try:
        async with asyncio.timeout(UNREAD_S):
            await send(message)
    except TimeoutError as error:
        raise ClientGone(f"the client read nothing for {UNREAD_S:g} s") from error
    except OSError as error:
        raise ClientGone("the client went away") from error


async def _disconnect(receive: Receive, read: asyncio.Event | None) -> None:
    if read is not None:
        await read.wait()
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientGone("the client went away")
