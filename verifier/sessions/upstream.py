"""Reads an upload stream: one long request whose records carry the messages of many sessions.

A session that is slow to take its messages delays no other one: what it has not taken yet is
kept for it, up to MAX_UNREAD_BYTES. The stream may be silent for SILENT_S, and ends when the
verifier has drained or the request's key is revoked. Its end ends only the sessions that its
answer carries, and an edge sends the messages that may be lost with it again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.background_work import running_alongside
from gateway.errors import ApiError, ClientGone, InvalidRequest, RateLimited
from gateway.http import send_to_client
from gateway.keys import CHECK_S
from gateway.request_body import RequestBody
from gateway.request_context import RequestContext
from speculation import upload_records, wire
from speculation.errors import MalformedFrame, RemoteProtocolError
from speculation.messages import (
    RUN_CHARACTERS,
    Fault,
    Message,
    Pushed,
)
from speculation.upload_records import Record
from speculation.wire import Framed
from verifier.sessions.admission import Sessions
from verifier.sessions.downstream import START, send_body
from verifier.sessions.multiplexed_stream import MultiplexedStream
from verifier.sessions.session import PUSH_S, Session
from verifier.target import TargetError, UnknownSession

RECORDS_HEADER: Final = "picospec-answer"
RECORDS: Final = "records"
"""With this value of the header, the answer consists of records too."""

SILENT_S: Final = 180.0
"""A stream without a record ends after this many seconds, before most proxies would cut it."""

MAX_UNREAD_BYTES: Final = 4 * upload_records.MAX_RECORD_BYTES
"""A session that has left this many bytes of messages unread ends: a correct edge does not send
as many draft tokens ahead of the text."""


def messages(body: bytes) -> Iterator[Framed[Message]]:
    """Yield the messages of a body one by one as they are decoded. Raises MalformedFrame."""
    decoder = wire.Decoder()
    yield from decoder.frames(body)
    decoder.close()


def drafts(body: bytes) -> Iterator[Framed[Pushed]]:
    """Yield the messages of a body. Raises RemoteProtocolError."""
    if not body:
        raise RemoteProtocolError("a request without a message")
    for framed in messages(body):
        if not isinstance(framed.message, Pushed):
            raise RemoteProtocolError(f"{type(framed.message).__name__}: not in this direction")
        yield Framed(framed.message, framed.frame)


@dataclass(slots=True)
class _UploadQueue:
    """The frames that a session has not taken yet."""

    session: Session
    frames: list[bytes] = field(default_factory=list)
    unread_bytes: int = 0

    def add(self, frames: bytes) -> None:
        self.unread_bytes += len(frames)
        if self.unread_bytes <= MAX_UNREAD_BYTES:
            self.frames.append(frames)
        else:
            reason = f"more than {MAX_UNREAD_BYTES} bytes of messages are unread"
            self.session.cancel(Fault("protocol_error", reason))

    def take(self) -> bytes:
        frames, self.frames, self.unread_bytes = b"".join(self.frames), [], 0
        return frames


class _Over(Exception):
    """The verifier has drained."""


class Upstream(Response):
    """Responds to an upload stream: at once with the name of the verifier's run, then with
    acknowledgements, and with the messages of sessions whose edge asks for them. over: set once
    sessions end."""

    def __init__(
        self,
        sessions: Sessions,
        context: RequestContext,
        body: RequestBody,
        over: asyncio.Event,
    ) -> None:
        super().__init__()
        self._sessions = sessions
        self._context = context
        self._body = body
        self._over = over
        self._has_records = False
        """True if the answer consists of records."""

        self._upload_queues: dict[str, _UploadQueue] = {}
        self._check_at = time.monotonic() + CHECK_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._has_records = Headers(scope=scope).get(RECORDS_HEADER) == RECORDS
        multiplexed = MultiplexedStream(
            upload_records.ASK if self._has_records else upload_records.ACKNOWLEDGED
        )
        with self._sessions.uploading(self._context.tenant):
            await self._answer(multiplexed, send)

    async def _answer(self, multiplexed: MultiplexedStream, send: Send) -> None:
        try:
            with suppress(_Over, TimeoutError):
                await send_to_client(send, START)
                await send_body(send, self._sessions.run[:RUN_CHARACTERS].encode())
                sending = multiplexed.run(partial(send_body, send))
                async with running_alongside(self._until_over(multiplexed), sending) as tasks:
                    await self._read(multiplexed, tasks)
        except ClientGone:
            return
        except ApiError as error:  # the answer has begun
            self._context.outcome.cut(error)
        finally:
            multiplexed.close()
        await send_body(send, b"", more=False)

    async def _until_over(self, multiplexed: MultiplexedStream) -> None:
        await self._over.wait()
        await multiplexed.emptied()  # the sessions that still run end with a Fault
        raise _Over

    async def _read(self, multiplexed: MultiplexedStream, tasks: asyncio.TaskGroup) -> None:
        """Read the stream to its end. Raises TimeoutError if no record comes for SILENT_S."""
        decoder, loop = upload_records.RecordDecoder(), asyncio.get_running_loop()
        until = loop.time() + SILENT_S
        while (piece := await self._body.next_piece(until)) is not None:
            self._check_key()
            acknowledgements, pause_at = 0, time.monotonic() + PUSH_S
            for record in _records(decoder, piece):
                until = loop.time() + SILENT_S
                if record.session:
                    self._pass_on(record, multiplexed, tasks)
                else:
                    acknowledgements += 1
                if time.monotonic() >= pause_at:
                    await asyncio.sleep(0)
                    pause_at = time.monotonic() + PUSH_S
            if acknowledgements:
                await multiplexed.acknowledge(acknowledgements)

    def _check_key(self) -> None:
        """Raise Unauthorized if the request's key was revoked."""
        if (now := time.monotonic()) >= self._check_at:
            self._check_at = now + CHECK_S
            self._context.check_key()

    def _pass_on(
        self, record: Record, multiplexed: MultiplexedStream, tasks: asyncio.TaskGroup
    ) -> None:
        """Have a session take a record. One for a session that does not exist is dropped, and
        counts as a request."""
        queue = self._upload_queues.get(record.session)
        if queue is not None and record.frames:
            return queue.add(record.frames)
        context = self._context
        try:
            session = self._sessions.find(record.session, context.tenant)
        except UnknownSession:
            session = None
            with suppress(RateLimited):
                context.tenant.admit(context.clock())
        if session is None or session.ending:  # its own stream says that it has ended
            return context.usage.metrics.failed_messages.labels("404").inc()
        if not record.frames:
            return self._carry(session, multiplexed)
        self._upload_queues[record.session] = queue = _UploadQueue(session)
        queue.add(record.frames)
        tasks.create_task(self._push(queue))

    def _carry(self, session: Session, multiplexed: MultiplexedStream) -> None:
        """Have this stream carry a session's further messages, if none does yet."""
        if not self._has_records:
            raise InvalidRequest("a record without a frame", code="malformed_frame")
        if session.multiplexed is None or session.multiplexed.is_over:
            session.multiplexed = multiplexed

    async def _push(self, queue: _UploadQueue) -> None:
        """Have a session take its messages. An error ends the session, and its own stream says
        so."""
        session = queue.session
        try:
            while queue.frames:
                await session.push(drafts(queue.take()))
        except (RemoteProtocolError, UnknownSession):
            return
        except TargetError as error:
            session.cancel(Fault("target_failed", str(error), retryable=True))
        finally:
            del self._upload_queues[session.name]


def _records(decoder: upload_records.RecordDecoder, piece: bytes) -> Iterator[Record]:
    try:
        yield from decoder.feed(piece)
    except MalformedFrame as error:
        raise InvalidRequest(str(error), code="malformed_frame") from error
