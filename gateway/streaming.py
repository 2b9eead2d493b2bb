"""Answers as server-sent events.

The first event decides the status: an error before it gets its own status; an error after it
becomes an event `data: {"error": ...}`, and the stream ends without [DONE].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.account import Account
from gateway.errors import ApiError, ClientGone, EngineFault
from gateway.performing import Voice, perform, unless_gone
from gateway.reading import Said
from gateway.replies import Heading, closing, error_response
from gateway.shapes import Json

_START: Final[Message] = {
    "type": "http.response.start",
    "status": 200,
    "headers": (
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
    ),
}


class StreamReply(Response):
    """One answer, sent once. Owns the voices: they are closed when it returns or raises."""

    def __init__(
        self, heading: Heading, voices: Sequence[Voice], account: Account, *, usage: bool
    ) -> None:
        super().__init__()
        self._heading = heading
        self._voices = voices
        self._account = account
        self._usage = usage
        self._opened: set[int] = set()
        self._speaking = len(voices)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, lambda: self._stream(send))
            await _send(send, self._end())  # servers report a complete stream as a disconnect
        except ClientGone as gone:
            self._account.status, self._account.error = gone.status, gone.code
        except ApiError as error:
            await self._fail(error, scope, receive, send)
        except Exception as fault:  # a bug: said to the client as such, logged by the account
            self._account.fault = fault
            await self._fail(EngineFault("internal error"), scope, receive, send)

    async def _stream(self, send: Send) -> None:
        async def emit(index: int, said: Said) -> None:
            if not self._opened:
                await _send(send, _START)
            self._account.heard(index, said)
            await _send(send, _data(*self._chunks(index, said)))

        await perform(self._voices, emit)

    def _end(self) -> Message:
        last = [self._usage_chunk()] if self._usage else []
        return _data(*last, done=True)

    def _chunks(self, index: int, said: Said) -> Iterator[Json]:
        shape = self._heading.shape
        opening = shape.opening() if index not in self._opened else None
        self._opened.add(index)
        if opening is not None:
            yield self._chunk(index, opening)
        if said.text or said.entries:
            entries = self._heading.entries(said.entries)
            yield self._chunk(index, shape.piece(said.text, entries))
        if said.finish is not None:
            self._speaking -= 1
            yield {**self._chunk(index, shape.ending(said.finish)), **self._figures()}

    def _chunk(self, index: int, choice: Json) -> Json:
        body = self._heading.body(chunk=True, choices=[{"index": index, **choice}])
        return {**body, "usage": None} if self._usage else body

    def _figures(self) -> Json:
        """The statistics ride on the last chunk: the usage chunk, if one is wanted."""
        return closing(self._account) if not self._usage and not self._speaking else {}

    def _usage_chunk(self) -> Json:
        body = self._heading.body(chunk=True, choices=[])
        return {**body, "usage": self._account.usage(), **closing(self._account)}

    async def _fail(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        self._account.error = error.error_code
        if self._opened:
            await send({**_data(error.body()), "more_body": False})
        else:
            await error_response(error)(scope, receive, send)


def _data(*events: object, done: bool = False) -> Message:
    """Return one body message with an event for each object, and [DONE] after the last."""
    encoded = [msgspec.json.encode(event) for event in events]
    body = b"".join(b"data: %b\n\n" % event for event in encoded + [b"[DONE]"] * done)
    return {"type": "http.response.body", "body": body, "more_body": not done}


async def _send(send: Send, message: Message) -> None:
    """Send; raise ClientGone when the server says that nobody is there any more."""
    try:
        await send(message)
    except OSError as error:
        raise ClientGone("the client went away") from error
