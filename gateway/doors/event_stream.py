"""Sends an answer: whole, or streamed as server-sent events or in its door's form.

The status of a stream is sent with the first event, or with the first keep-alive. An error
before that gets a status of its own; a later error becomes the stream's last event.

A long prompt may take minutes to read. Without keep-alives, proxies and clients would give up
on the connection meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from picospec.gateway.accounts.account import Account
from picospec.gateway.doors.door import Answer
from picospec.gateway.drain import Drain
from picospec.gateway.errors import ClientGone
from picospec.gateway.http.responses import connected, json_response, send_to_client
from picospec.gateway.output.choice_stream import ChoiceStream, Order, together
from picospec.gateway.output.detokenise import TextDelta
from picospec.gateway.output.message import joined

_HEADERS: Final = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


@dataclass(eq=False)
class EventStream(Response):
    """Sends one answer once, and closes `streams` before it returns or raises."""

    answer: Answer
    streams: Sequence[ChoiceStream]
    account: Account
    drain: Drain
    order: Order | None
    keep_alive_s: float
    _has_status: bool = field(default=False, init=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self.drain.answer():
                async with connected(receive) as tasks:
                    await self._stream(send, tasks)
                # Disconnects are not watched any more: servers report the end as a disconnect.
                await send_to_client(send, _piece(self.answer.end(), more=False))
        except ClientGone as gone:
            self.account.status, self.account.error = gone.status, gone.code
        except Exception as raised:
            if not self._has_status:
                raise
            last = self.answer.failure(self.account.failed(raised))
            with suppress(ClientGone):
                await send_to_client(send, _piece(last, more=False))

    async def _stream(self, send: Send, tasks: asyncio.TaskGroup) -> None:
        begun, waiting = asyncio.Event(), partial(self._keep_alive, send)
        kept = tasks.create_task(keep_alive(begun, waiting, self.keep_alive_s))
        async with together(self.streams, self.order) as deltas:
            async for index, delta in deltas:
                self.account.count(index, delta)
                if shown := self.answer.events(index, delta):
                    if not begun.is_set():
                        await self._begin(send, begun, kept)
                    await send_to_client(send, _piece(shown))
        await self._begin(send, begun, kept)

    async def _begin(self, send: Send, begun: asyncio.Event, kept: asyncio.Task[None]) -> None:
        begun.set()
        await kept
        await self._send_status(send)

    async def _keep_alive(self, send: Send) -> None:
        await self._send_status(send)
        await send_to_client(send, _piece(self.answer.waiting()))

    async def _send_status(self, send: Send) -> None:
        if not self._has_status:
            await send_to_client(send, _start(self.answer.media_type))
            self._has_status = True


def _start(media_type: str) -> Message:
    headers = ((b"content-type", media_type.encode()), *_HEADERS)
    return {"type": "http.response.start", "status": 200, "headers": headers}


def _piece(body: bytes, *, more: bool = True) -> Message:
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
    answer: Answer, streams: Sequence[ChoiceStream], account: Account, receive: Receive
) -> Response:
    """Return the answer once all streams have ended. Raises ApiError, such as ClientGone."""
    read: list[list[TextDelta]] = [[] for _ in streams]
    async with connected(receive), together(streams) as deltas:
        async for index, delta in deltas:
            account.count(index, delta)
            read[index].append(delta)
    return json_response(answer.full_answer([_joined(deltas) for deltas in read]))


def _joined(deltas: Sequence[TextDelta]) -> TextDelta:
    """Return all deltas of a choice joined into one."""
    parsed = [delta.parsed for delta in deltas if delta.parsed is not None]
    return TextDelta(
        text="".join(delta.text for delta in deltas),
        tokens=sum(delta.tokens for delta in deltas),
        entries=tuple(entry for delta in deltas for entry in delta.entries),
        finish=deltas[-1].finish,
        statistics=deltas[-1].statistics,
        parsed=joined(parsed) if parsed else None,
        stop=deltas[-1].stop,
    )
