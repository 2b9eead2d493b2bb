"""Messages of sessions travel in two streams: a long response down, and a long request up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message as AsgiMessage
from starlette.types import Receive, Scope, Send

from gateway import http
from gateway.background_work import running_alongside
from gateway.errors import ApiError, ClientGone, InvalidRequest, RateLimited
from gateway.http import connected, send_to_client
from gateway.keys import CHECK_S
from gateway.request_body import RequestBody
from gateway.request_context import RequestContext
from speculation import upload_records, wire
from speculation.messages import (
    RUN_CHARACTERS,
    STREAM_HEARTBEAT_S,
    Fault,
    MalformedFrame,
    Message,
    Multiplexed,
    Pushed,
    RemoteProtocolError,
)
from speculation.upload_records import Record
from speculation.wire import Framed
from verifier.sessions.multiplexed_stream import MultiplexedStream
from verifier.sessions.session import PUSH_S, STREAM_HEARTBEAT, Session, Sessions
from verifier.target import TargetError, UnknownSession

# Streams a session's messages as one long response body.
#
# Headers are sent with the first body message, so one is sent at once. In a silence a Heartbeat
# is sent at intervals, so that the edge soon notices a lost link or process. The stream ends
# after a Finish or a Fault, or when the client goes away; the session ends with it.
#
# If the edge asks for it, the rest of the messages goes down its upload stream instead. Then
# the session also ends with that stream.

CONTENT_TYPE: Final = "application/vnd.picospec"

KEEP_S: Final = 20.0
"""A stream whose session is multiplexed carries a Heartbeat at this interval: proxies close a
silent one after a minute or more."""

_GONE: Final = Fault("cancelled", "nobody reads the session's stream")
_MULTIPLEXED: Final = wire.encode(Multiplexed())
START: Final[AsgiMessage] = {
    "type": "http.response.start",
    "status": 200,
    "headers": (
        (b"content-type", CONTENT_TYPE.encode()),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
    ),
}


class Downstream(Response):
    """Responds with a session's stream. It owns the session, and ends it when it ends."""

    def __init__(self, session: Session, context: RequestContext) -> None:
        super().__init__()
        self._session = session
        self._context = context
        self._sent_at = 0.0
        self._sends = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with connected(receive):
                await self._stream(send)
            await _send(send, b"", more=False)  # a server reports our own end as a disconnect
        except ClientGone as gone:
            self._context.outcome.cut(gone)
        finally:
            self._session.cancel(_GONE)

    async def _stream(self, send: Send) -> None:
        await send_to_client(send, START)
        await _send(send, wire.encode(self._session.opened))
        self._sent_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(None) as unread:
                with self._watched(unread):
                    await self._send_entries(send)
        except TimeoutError as error:
            reason = f"the client read nothing for {http.UNREAD_S:g} s"
            raise ClientGone(reason) from error
        except OSError as error:
            raise ClientGone("the client went away") from error

    async def _send_entries(self, send: Send) -> None:
        session = self._session
        while entries := await session.read():
            frames = b"".join([entry.frame for entry in entries])
            if (multiplexed := session.multiplexed) is not None and not multiplexed.is_over:
                multiplexed.carry(session.name, partial(session.cancel, _GONE))
                try:
                    await self._write(send, frames + _MULTIPLEXED)
                    return await self._multiplex(multiplexed, send)
                finally:
                    multiplexed.leave(session.name)
            await self._write(send, frames)
            self._sent_at = asyncio.get_running_loop().time()

    async def _multiplex(self, multiplexed: MultiplexedStream, send: Send) -> None:
        """Have the further entries go to an upload stream, until the last one."""
        loop, session = asyncio.get_running_loop(), self._session

        def write(frame: bytes) -> None:
            multiplexed.write(session.name, frame)
            self._sent_at = loop.time()

        session.multiplex(write)
        while not session.ending:
            try:
                async with asyncio.timeout(KEEP_S):
                    await session.read()
            except TimeoutError:
                await self._write(send, STREAM_HEARTBEAT.frame)
        if multiplexed.is_over:
            await _send(send, b"", more=False)
            raise ClientGone("the client's upload stream has ended")

    async def _write(self, send: Send, frames: bytes) -> None:
        self._sends = True
        await send({"type": "http.response.body", "body": frames, "more_body": True})
        self._sends = False

    @contextmanager
    def _watched(self, unread: asyncio.Timeout) -> Iterator[None]:
        """Have a Heartbeat sent in each silence, and end the stream if its client does not
        read. One
        timer looks after both: a timer for each message costs as much as its bytes."""
        loop = asyncio.get_running_loop()

        def look() -> None:
            silent_s = loop.time() - self._sent_at
            if self._sends and silent_s >= http.UNREAD_S:
                return unread.reschedule(loop.time())
            if silent_s >= STREAM_HEARTBEAT_S and not self._sends:
                self._session.heartbeat()
            left_s = STREAM_HEARTBEAT_S - silent_s
            self._timer = loop.call_later(left_s if left_s > 0 else STREAM_HEARTBEAT_S, look)

        self._timer = loop.call_later(STREAM_HEARTBEAT_S, look)
        try:
            yield
        finally:
            self._timer.cancel()


async def _send(send: Send, data: bytes, *, more: bool = True) -> None:
    body: AsgiMessage = {"type": "http.response.body", "body": data, "more_body": more}
    await send_to_client(send, body)


# Reads an upload stream: one long request whose records carry the messages of many sessions.
#
# A session that is slow to take its messages delays no other one: what it has not taken yet is
# kept for it, up to MAX_UNREAD_BYTES. The stream may be silent for SILENT_S, and ends when the
# verifier has drained or the request's key is revoked. Its end ends only the sessions that its
# answer carries, and an edge sends the messages that may be lost with it again.

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
                await _send(send, self._sessions.run[:RUN_CHARACTERS].encode())
                sending = multiplexed.run(partial(_send, send))
                async with running_alongside(self._until_over(multiplexed), sending) as tasks:
                    await self._read(multiplexed, tasks)
        except ClientGone:
            return
        except ApiError as error:  # the answer has begun
            self._context.outcome.cut(error)
        finally:
            multiplexed.close()
        await _send(send, b"", more=False)

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
