"""One session with a verifier: messages down, drafts up, until the stream ends.

`events` opens the session and yields the verifier's messages. It raises LinkDown when the
stream is cut, or has carried no byte for three heartbeats; the answer then needs another
session."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Final

import structlog

from edge_agent.link.connection import session_headers
from edge_agent.link.errors import LinkDown, from_fault
from edge_agent.link.failover_policy import HANDOVER_FAULT, IDLE, RESPONSE_TIMEOUT_S
from edge_agent.link.known_verifiers import Event
from edge_agent.link.posts import INLINE_TOKENS, Posts
from edge_agent.link.prefixes import PromptReading
from edge_agent.link.uploads import Upload
from edge_agent.link.verifier import Verifier
from gateway.channel import Channel
from gateway.errors import ApiError, Draining, EngineFault, TooLarge, Unavailable
from gateway.tracing import NO_SPAN, Span
from speculation import wire
from speculation.errors import LocalProtocolError, RemoteProtocolError
from speculation.messages import (
    STREAM_HEARTBEAT_S,
    CachedPromptTokens,
    Commit,
    Down,
    Fault,
    Finish,
    Heartbeat,
    Multiplexed,
    Open,
    Opened,
    Up,
)
from speculation.model_facts import Limits

SILENCE_S: Final = 3 * STREAM_HEARTBEAT_S
"""An open session's stream is lost after this time without a byte, because its connection may
be dead."""

FIRST_TOKEN_S: Final = 600.0
"""A session waits at most this long for a slot and for its prompt to be read, as by the
verifier's own default, and no longer for a later token."""

LATE_S: Final = 30.0
"""An edge gives up this much later than its verifier, so that the verifier's own Fault comes
first. A draft that was on its way may have extended the verifier's timeout."""

MAX_IDLE: Final = 4096
"""After this many messages and cuts in a row without a token a session is lost. The longest
wait has 2,100 Heartbeats; more messages than that only cost this machine time."""


class Silence:
    """Ends each wait for a piece of a stream with a TimeoutError if it takes too long. One
    timer serves many waits, because nearly all of them are short.

    If this process stood still and the timer is late, a wait may take as much longer, at most
    SILENCE_S, because bytes that have arrived may not have been read.
    """

    def __init__(self) -> None:
        self._wait: asyncio.Timeout | None = None
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def wait(self, within_s: float) -> asyncio.Timeout:
        """Return the context of one wait, after which `over` must be called."""
        loop = asyncio.get_running_loop()
        self._due = loop.time() + within_s
        if self._timer is None or self._timer.when() > self._due:
            self.close()
            self._timer = loop.call_at(self._due, self._look)
        self._wait = asyncio.timeout(None)
        return self._wait

    def over(self) -> None:
        self._wait = None

    def _look(self) -> None:
        """End the wait if its time is over, or look again when it may be."""
        loop = asyncio.get_running_loop()
        self._timer, now = None, loop.time()
        if self._wait is None:
            return
        if now < self._due:
            self._timer = loop.call_at(self._due, self._look)
        else:
            self._wait.reschedule(now + min(now - self._due, SILENCE_S))

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class Progress:
    """Decides when a live session is given up because its verifier sends no token. It lasts
    across the sessions that one process of a verifier opens one after another. Its times are in
    seconds."""

    def __init__(self, now: float) -> None:
        self.begin(now)

    def begin(self, now: float) -> None:
        """Note that a verifier begins, which may have to read the prompt."""
        self._last_progress = now
        self._allowed_s = FIRST_TOKEN_S + LATE_S
        self._idle = 0

    def observe_token(self, now: float, limits: Limits) -> None:
        self._last_progress, self._idle = now, 0
        self._allowed_s = min(limits.idle_timeout_s, FIRST_TOKEN_S) + LATE_S

    def observe_silence(self, now: float) -> None:
        """Note a message without a token, or the end of a stream. Raises Unavailable."""
        self._idle, waited_s = self._idle + 1, now - self._last_progress
        if waited_s > self._allowed_s:
            raise Unavailable(f"the verifier sent no token for {waited_s:.0f} s", code=IDLE)
        if self._idle > MAX_IDLE:
            reason = f"the verifier sent {MAX_IDLE} messages without a token"
            raise Unavailable(reason, code=IDLE)


class EdgeSession:
    """Run `post` concurrently with `events`, whose end ends the session.

    within_s: the Open may wait this long for the first byte of its answer. headers: see
    session_headers. spans: the answer's, and the one that lasts until the session is open.
    opened: called when the verifier has taken the session. reading: learns from it
    until the first token.
    """

    def __init__(
        self,
        verifier: Verifier,
        request: Open,
        *,
        within_s: float = RESPONSE_TIMEOUT_S,
        headers: Mapping[str, str] | None = None,
        progress: Progress | None = None,
        spans: tuple[Span, Span] = (NO_SPAN, NO_SPAN),
        opened: Callable[[Opened], object] = lambda _: None,
        reading: PromptReading | None = None,
    ) -> None:
        self._verifier = verifier
        self._request = request
        self._within_s = within_s
        self._headers = headers or session_headers()
        self._progress = progress or Progress(time.monotonic())
        self._answer_span, self._span = spans
        self._when_opened = opened
        self._reading = reading
        self._posts = Posts(verifier, self._headers)
        self.send = self._posts.send
        self.position = len(request.committed)
        """The number of output tokens that have come, including those of earlier sessions."""

        self._carrier: Upload | None = None
        self._carried: Channel[bytes] | None = None
        """It will have the session's frames once they come on its carrier, an upload stream;
        None if that was not asked, or has happened."""

        self._name = ""
        self._limits = Limits()
        self._opened = asyncio.Event()

    @property
    def opened(self) -> bool:
        """True if the verifier has taken the session."""
        return bool(self._name)

    @property
    def progressed(self) -> bool:
        """True if the session has brought a token."""
        return self.position > len(self._request.committed)

    async def post(self) -> None:
        """Send the messages given to `send`, once the session is open, until cancelled.

        Raises gateway.errors.ApiError.
        """
        await self._opened.wait()
        await self._posts.run(self._name)

    async def events(self) -> AsyncGenerator[Down]:
        """Open the session and yield all its messages but Heartbeats; Finish is the last.

        Raises gateway.errors.ApiError; never ends without Finish.
        """
        self._verifier.open_sessions += 1
        try:
            frame, headers = await self._frame(), {**self._headers, **self._span.headers}
            async with (
                self._verifier.connection.open(frame, headers, self._within_s) as pieces,
                aclosing(self._messages(pieces)) as messages,
            ):
                async for message in messages:
                    self._note(message)
                    if not isinstance(message, Heartbeat):
                        yield message
                    if isinstance(message, Finish):
                        return
            raise LinkDown("the verifier's stream has ended early", "broken")
        except ApiError as error:
            self._span.end(error.error_code)
            if isinstance(error, LinkDown):
                structlog.get_logger("edge_agent.link").info("link_cut", reason=error.message)
                self._verifier.note(Event.LOST)
                if self.opened:
                    self._progress.observe_silence(time.monotonic())
            elif isinstance(error, Draining):
                self._verifier.note(Event.DRAINS)
            raise
        finally:
            self._verifier.open_sessions -= 1
            self._span.end()
            if self._carrier is not None:
                self._carrier.leave(self._name)
            if self.opened:
                self._verifier.sessions.dec()

    async def _frame(self) -> bytes:
        """Return the Open's frame. A thread encodes a long one, of which many may begin at once
        when a verifier is lost."""
        request = self._request
        try:
            if len(request.prompt) + len(request.committed) <= INLINE_TOKENS:
                frame = wire.encode(request)
            else:
                async with self._verifier.encoding:
                    frame = await asyncio.to_thread(wire.encode, request)
        except LocalProtocolError as error:
            raise TooLarge(f"more than a session can begin with: {error}") from error
        self._verifier.metrics.bytes_open.inc(len(frame))
        return frame

    def _note(self, message: Down) -> None:
        match message:
            case Opened(session, limits) if not self.opened:
                self._name, self._limits = session, limits
                self._verifier.sessions.inc()
                self._verifier.note(Event.ANSWERED)
                self._when_opened(message)
                if self._reading is not None:
                    self._reading.opened(time.monotonic())
                self._span.end()
                self._span = self._answer_span.begin("first token")
                self._opened.set()
            case Commit(start=start, tokens=tokens) if start + len(tokens) > self.position:
                self._span.end()
                self.position = start + len(tokens)
                self._posts.committed(self.position)
                self._progress.observe_token(time.monotonic(), self._limits)
                if self._reading is not None:
                    self._reading.first_token(time.monotonic())
                    self._reading = None
                self._ask_to_multiplex()
            case CachedPromptTokens(tokens):
                if self._reading is not None:
                    self._reading.cached_tokens(tokens)
                self._progress.observe_silence(time.monotonic())
            case Fault(code=code):
                if code == HANDOVER_FAULT:
                    self._verifier.note(Event.DRAINS)
                raise from_fault(message)
            case _:
                self._progress.observe_silence(time.monotonic())

    def _ask_to_multiplex(self) -> None:
        """Ask that the session's messages come on the connection's upload stream, once for each
        stream."""
        upload = self._posts.upload
        if upload is not None and upload is not self._carrier and upload.carries:
            self._carrier, self._carried = upload, upload.carry(self._name)

    def _multiplexed(self) -> Channel[bytes]:
        """Return what has the frames from now on. Raises RemoteProtocolError."""
        carried, self._carried = self._carried, None
        if carried is None:
            raise RemoteProtocolError("Multiplexed, which was not asked for")
        self._verifier.metrics.multiplexed.inc()
        return carried

    async def _messages(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[Down]:
        """Yield the messages of the stream until it ends. Raises TimeoutError if it is silent
        for too long; before Opened the limit is `within_s`, because the host may be busy."""
        decoder, received = wire.Decoder(wire.MAX_DOWN_BYTES), self._verifier.metrics.bytes_down
        silence, read = Silence(), partial(anext, pieces, b"")
        try:
            while True:
                within_s = SILENCE_S if self.opened else self._within_s
                async with silence.wait(within_s):
                    piece = await read()
                silence.over()
                if not piece:
                    return
                received.inc(len(piece))
                for message in decoder.feed(piece):
                    if isinstance(message, Up):
                        raise RemoteProtocolError(f"{type(message).__name__} on the way down")
                    if isinstance(message, Multiplexed):
                        read = partial(_joined, self._multiplexed())
                    else:
                        yield message
        except RemoteProtocolError as error:
            raise EngineFault(f"the verifier broke the protocol: {error}") from error
        finally:
            silence.close()


async def _joined(channel: Channel[bytes]) -> bytes:
    """Return all frames that wait as one piece; b"" after the last."""
    return b"".join(await channel.take())
