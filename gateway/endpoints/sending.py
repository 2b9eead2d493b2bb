"""An answer is sent to its client, as a stream that is kept alive or as one JSON body."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from msgspec.structs import replace
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.drain import Drain
from gateway.endpoints.answer import Answer
from gateway.errors import ClientGone
from gateway.http import PIECE_BYTES, connected, json_response, pieces, send_to_client
from gateway.output.detokenise import TextDelta
from gateway.output.message import joined
from gateway.output.stream import ChoiceStream, together
from gateway.request_context import RequestContext

_HEADERS: Final = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


@dataclass(eq=False)
class EventStream(Response):
    """Sends one answer once, and closes `streams` before it returns or raises: as server-sent
    events, or streamed in its endpoint's form.

    The status is sent with the first event, or with the first keep-alive. An error before that
    gets a status of its own; a later error becomes the stream's last event.

    A long prompt may take minutes to read. Without keep-alives, proxies and clients would give
    up on the connection meanwhile.
    """

    answer: Answer
    streams: Sequence[ChoiceStream]
    context: RequestContext
    drain: Drain
    keep_alive_s: float
    _has_status: bool = field(default=False, init=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self.drain.answer():
                async with connected(receive) as tasks:
                    await self._stream(send, tasks)
                # Disconnects are not watched any more: servers report the end as a disconnect.
                *some, last = pieces(self.answer.end())
                for piece in some:
                    await send_to_client(send, stream_piece(piece))
                await send_to_client(send, stream_piece(last, more=False))
        except ClientGone as gone:
            self.context.outcome.cut(gone)
        except Exception as raised:
            if not self._has_status:
                raise
            last = self.answer.failure(self.context.failed(raised))
            with suppress(ClientGone):
                await send_to_client(send, stream_piece(last, more=False))

    async def _stream(self, send: Send, tasks: asyncio.TaskGroup) -> None:
        begun, waiting = asyncio.Event(), partial(self._keep_alive, send)
        kept = tasks.create_task(keep_alive(begun, waiting, self.keep_alive_s))
        async with together(self.streams) as deltas:
            async for index, delta in deltas:
                self.context.count(index, delta)
                if shown := self.answer.events(index, delta):
                    if not begun.is_set():
                        await self._begin(send, begun, kept)
                    if len(shown) > PIECE_BYTES:
                        *some, shown = pieces(shown)
                        for piece in some:
                            await send_to_client(send, stream_piece(piece))
                    await send_to_client(send, stream_piece(shown))
        await self._begin(send, begun, kept)

    async def _begin(self, send: Send, begun: asyncio.Event, kept: asyncio.Task[None]) -> None:
        begun.set()
        await kept
        await self._send_status(send)

    async def _keep_alive(self, send: Send) -> None:
        await self._send_status(send)
        await send_to_client(send, stream_piece(self.answer.waiting()))

    async def _send_status(self, send: Send) -> None:
        if not self._has_status:
            await send_to_client(send, stream_start(self.answer.media_type))
            self._has_status = True


def stream_start(media_type: str, *more: tuple[bytes, bytes]) -> Message:
    """Return the message that begins a stream. more: further headers."""
    headers = ((b"content-type", media_type.encode()), *_HEADERS, *more)
    return {"type": "http.response.start", "status": 200, "headers": headers}


def stream_piece(body: bytes, *, more: bool = True) -> Message:
    """Return the message with the next bytes of a stream. more: False if they are the last."""
    return {"type": "http.response.body", "body": body, "more_body": more}


async def keep_alive(
    begun: asyncio.Event, send: Callable[[], Awaitable[None]], interval_s: float
) -> None:
    """Await `send()` every `interval_s` seconds until `begun` is set."""
    while not begun.is_set():
        try:
            async with asyncio.timeout(interval_s):
                await begun.wait()
        except TimeoutError:
            await send()


async def json_answer(
    answer: Answer, streams: Sequence[ChoiceStream], context: RequestContext, receive: Receive
) -> Response:
    """Return the answer once all streams have ended. Raises ApiError, such as ClientGone."""
    read: list[list[TextDelta]] = [[] for _ in streams]
    blocks: list[list[TextDelta]] = [[] for _ in streams]
    async with connected(receive), together(streams) as deltas:
        async for index, delta in deltas:
            context.count(index, delta)
            if delta.entries:
                delta = replace(delta, entries=(), written=answer.write(delta.entries))
            (some := read[index]).append(delta)
            if len(some) == JOINED:
                blocks[index].append(_joined(some))
                some.clear()
    wholes = [_joined([*block, *rest]) for block, rest in zip(blocks, read, strict=True)]
    return json_response(answer.full_answer(wholes))


JOINED: Final = 256
"""So many deltas of a choice are joined at once, which takes less than a millisecond."""


def _joined(deltas: Sequence[TextDelta]) -> TextDelta:
    """Return all deltas of a choice joined into one."""
    parsed = [delta.parsed for delta in deltas if delta.parsed is not None]
    return TextDelta(
        text="".join(delta.text for delta in deltas),
        tokens=sum(delta.tokens for delta in deltas),
        finish=deltas[-1].finish,
        statistics=deltas[-1].statistics,
        parsed=joined(parsed) if parsed else None,
        stop=deltas[-1].stop,
        scores=deltas[0].scores,
        written=[each for delta in deltas for each in delta.written],
    )
