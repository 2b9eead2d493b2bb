"""These functions make JSON responses, send messages to a client, and notice when it has
gone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.background_work import running_alongside
from gateway.errors import OPENAI, ApiError, ClientGone, Shape, Unauthorized

NOSNIFF: Final = {"x-content-type-options": "nosniff"}
"""This header makes browsers trust a response's `content-type` instead of guessing HTML."""

UNREAD_S: Final = 60.0
"""A message waits at most this many seconds for a client that does not read; then the client
counts as gone. Server and system buffer hundreds of kilobytes of a stream before it has to wait
at all."""


PIECE_BYTES: Final = 1 << 20
"""A longer body is sent in pieces of this size: servers copy a piece at once, and 50 MB would
take them 50 ms."""


def pieces(body: bytes) -> Sequence[bytes]:
    """Return a part of a body in pieces of at most PIECE_BYTES."""
    if len(body) <= PIECE_BYTES:
        return (body,)
    return [body[at : at + PIECE_BYTES] for at in range(0, len(body), PIECE_BYTES)]


class _InPieces(Response):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **head})
        for piece in pieces(bytes(self.body)):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def json_response(
    body: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response whose body msgspec encodes."""
    all_headers, encoded = {**(headers or {}), **NOSNIFF}, msgspec.json.encode(body)
    response_class = Response if len(encoded) <= PIECE_BYTES else _InPieces
    return response_class(encoded, status, all_headers, "application/json")


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
    return running_alongside(_disconnect(receive, read))


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
