"""Answers as server-sent events.

The status is sent with the first event, or with a comment that keeps the connection alive. An
error before it gets a status of its own; an error after it becomes an event
`data: {"error": ...}`, and the stream ends without [DONE].

A long prompt may take minutes to read. Proxies and clients give up on a connection on which
nothing comes for so long; clients skip a comment, as the standard of server-sent events says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from picospec.gateway.accounts.account import Account
from picospec.gateway.doors.answer import Answer, Json
from picospec.gateway.drain import Drain
from picospec.gateway.errors import ClientGone
from picospec.gateway.http.client import connected, send_to_client
from picospec.gateway.output.choice_stream import ChoiceStream, Order, together
from picospec.gateway.output.detokenise import TextDelta
from picospec.gateway.watching import Told, Watch

COMMENT: Final = b": keep-alive\n\n"
_START: Final[Message] = {
    "type": "http.response.start",
    "status": 200,
    "headers": (
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
    ),
}


_MORE: Final[Message] = {"type": "http.response.body", "more_body": True}


@dataclass(eq=False)
class EventStream(Response):
    """One answer, sent once. It closes `streams` before it returns or raises."""

    answer: Answer
    streams: Sequence[ChoiceStream]
    account: Account
    drain: Drain
    usage: bool
    watch: Watch | None
    order: Order | None
    keep_alive_s: float
    _has_status: bool = field(default=False, init=False)
    _begun: set[int] = field(default_factory=set, init=False)
    """Choices of which a chunk was made."""

    _ended: int = field(default=0, init=False)
    """How many choices have finished."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self.drain.answer():
                async with connected(receive) as tasks:
                    await self._stream(send, tasks)
                # The watch for a disconnect has ended, because servers report the end as one.
                await send_to_client(send, self._end())
        except ClientGone as gone:
            self.account.status, self.account.error = gone.status, gone.code
        except Exception as raised:
            if not self._has_status:
                raise
            error = self.account.failed(raised)
            with suppress(ClientGone):
                await send_to_client(
                    send, {**_events(self.answer.error(error)), "more_body": False}
                )

    async def _stream(self, send: Send, tasks: asyncio.TaskGroup) -> None:
        begun, comment = asyncio.Event(), partial(self._comment, send)
        comments = tasks.create_task(keep_alive(begun, comment, self.keep_alive_s))
        async with together(self.streams, self.order) as deltas:
            async for index, delta in deltas:
                if not begun.is_set():
                    begun.set()
                    await comments
                    await self._send_status(send)
                self.account.count(index, delta)
                await send_to_client(send, _events(*self._chunks(index, delta)))

    async def _comment(self, send: Send) -> None:
        await self._send_status(send)
        await send_to_client(send, {**_MORE, "body": COMMENT})

    async def _send_status(self, send: Send) -> None:
        if not self._has_status:
            await send_to_client(send, _START)
            self._has_status = True

    def _end(self) -> Message:
        last: Json = {}
        if self.usage:
            last |= {"usage": self.account.usage(), **self.account.extensions()}
        if self.watch is not None:
            last["speculation"] = self.watch.totals() | self.account.speculation()
        ends = [{**self.answer.body([], chunk=True), **last}] if last else []
        return _events(*ends, done=True)

    def _chunks(self, index: int, delta: TextDelta) -> Iterator[Json]:
        first = self.answer.first_chunk(delta) if index not in self._begun else None
        self._begun.add(index)
        if first is not None:
            yield self._chunk(index, first)
        chunks = self.answer.chunks(delta)
        if self.watch is not None and delta.told is not None:
            yield from self._watched(index, delta, chunks, self.watch, delta.told)
        else:
            yield from (self._chunk(index, chunk) for chunk in chunks)
        if delta.finish is not None:
            self._ended += 1
            last = self._chunk(index, self.answer.last_chunk(delta.finish))
            if self.watch is not None and (tokens := self.watch.count(index)):
                last["speculation"] = {"tokens": tokens}
            ends_answer = self._ended == len(self.streams) and not self.usage
            yield {**last, **self.account.extensions()} if ends_answer else last

    def _watched(
        self, index: int, delta: TextDelta, chunks: Sequence[Json], watch: Watch, told: Told
    ) -> Iterator[Json]:
        """Yield a chunk for each event, and those of the text with their origins."""
        for event in watch.take(index, told):
            yield {**self._body([]), "speculation": event}
        for chunk, spans in zip(chunks, self.answer.spans(delta, told), strict=True):
            tokens = watch.count(index)
            yield {
                **self._chunk(index, chunk),
                "speculation": {"spans": spans, "tokens": tokens},
            }

    def _chunk(self, index: int, choice: Json) -> Json:
        return self._body([{"index": index, **choice}])

    def _body(self, choices: Sequence[Json]) -> Json:
        body = self.answer.body(choices, chunk=True)
        return {**body, "usage": None} if self.usage else body


def _events(*objects: object, done: bool = False) -> Message:
    """Return one body message with an event for each object, and [DONE] after the last."""
    encoded = [msgspec.json.encode(item) for item in objects]
    body = b"".join(b"data: %b\n\n" % event for event in encoded + [b"[DONE]"] * done)
    return {**_MORE, "body": body, "more_body": not done}


async def keep_alive(
    begun: asyncio.Event, comment: Callable[[], Awaitable[None]], interval_s: float
) -> None:
    """Await `comment()` every `interval_s` seconds until `begun` is set."""
    while not begun.is_set():
        try:
            async with asyncio.timeout(interval_s):
                await begun.wait()
        except TimeoutError:
            await comment()
