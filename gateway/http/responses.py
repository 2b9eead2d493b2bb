"""Makes JSON responses, and watches the connection to a client."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Send

from picospec.gateway.beside import beside
from picospec.gateway.errors import OPENAI, ApiError, ClientGone, Shape, Unauthorized

NOSNIFF: Final = {"x-content-type-options": "nosniff"}
"""This header makes browsers trust a response's `content-type` instead of guessing HTML."""

UNREAD_S: Final = 60.0
"""A message waits at most this many seconds for a client that does not read. Server and system
buffer hundreds of kilobytes of a stream before it has to wait at all."""


def json_response(
    body: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response whose body msgspec encodes."""
    given = {**(headers or {}), **NOSNIFF}
    return Response(msgspec.json.encode(body), status, given, "application/json")


def error_response(error: ApiError, shape: Shape = OPENAI) -> Response:
    """Return the error with the headers that RFC 9110 and RFC 6585 define for its status."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    return json_response(shape.body(error), shape.status(error), headers)


def connected(
    receive: Receive, read: asyncio.Event | None = None
) -> AbstractAsyncContextManager[asyncio.TaskGroup]:
    """Cancel the body and raise ClientGone if the client disconnects; yield a TaskGroup whose
    tasks are then cancelled too.

    read: set once the request's body has been read; None if it has been read already.
    """
    return beside(_disconnect(receive, read))


async def send_to_client(send: Send, message: Message) -> None:
    """Send a message. Raises ClientGone if the server reports that the connection is closed,
    or if the client reads nothing for UNREAD_S seconds."""
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
