"""One session's link to its verifier: messages down, drafts up, until the stream ends.

`events` opens the session and yields the verifier's messages. It raises LinkDown when the
stream is cut, or has carried no byte for three beats; the answer then goes on in another one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Final

import structlog

from picospec.edge_agent.link import upstream_errors
from picospec.edge_agent.link.connection import session_headers
from picospec.edge_agent.link.course import HANDOVER_FAULT, RESPONSE_TIMEOUT_S
from picospec.edge_agent.link.fleet import Event
from picospec.edge_agent.link.posts import Posts
from picospec.edge_agent.link.progress import Progress
from picospec.edge_agent.link.session_trace import SessionTrace
from picospec.edge_agent.link.uplink import Uplink
from picospec.edge_agent.link.upstream_errors import LinkDown
from picospec.gateway.errors import Draining, EngineFault, TooLarge
from picospec.speculation.protocol import wire
from picospec.speculation.protocol.errors import LocalProtocolError, RemoteProtocolError
from picospec.speculation.protocol.messages import (
    BEAT_S,
    Beat,
    Commit,
    Down,
    Fault,
    Finish,
    Limits,
    Open,
    Opened,
    Up,
)

SILENCE_S: Final = 3 * BEAT_S
"""An open session's stream is lost after this time without a byte, because its connection may
be dead."""


class Link:
    """Run `post` concurrently with `events`, whose end ends the session.

    within_s: how long the Open may wait for the first byte of its answer. headers: see
    session_headers. opened: is called when the verifier has taken the session.
    """

    def __init__(
        self,
        uplink: Uplink,
        request: Open,
        *,
        within_s: float = RESPONSE_TIMEOUT_S,
        headers: Mapping[str, str] | None = None,
        progress: Progress | None = None,
        trace: SessionTrace | None = None,
        opened: Callable[[Opened], object] = lambda _: None,
    ) -> None:
        self._uplink = uplink
        self._request = request
        self._within_s = within_s
        self._headers = headers or session_headers()
        self._progress = progress or Progress(time.monotonic())
        self._trace = trace or SessionTrace.untraced(request)
        self._when_opened = opened
        self._posts = Posts(self._post)
        self.send = self._posts.send
        self.position = len(request.committed)
        """So many output tokens have come, those of sessions before included."""

        self._session = ""
        self._limits = Limits()
        self._opened = asyncio.Event()

    @property
    def opened(self) -> bool:
        """Whether the verifier has taken the session."""
        return bool(self._session)

    @property
    def progressed(self) -> bool:
        """Whether the session has brought a token."""
        return self.position > len(self._request.committed)

    async def post(self) -> None:
        """Send what `send` is given, once the session is open, until cancelled.

        Raises gateway.errors.ApiError.
        """
        await self._opened.wait()
        await self._posts.run(self._session)

    async def _post(self, session: str, frames: bytes) -> None:
        begun, metrics = time.monotonic(), self._uplink.metrics
        metrics.posts.inc()
        metrics.link_bytes.labels("up").inc(len(frames))
        if await self._uplink.transport.post(session, frames, self._headers):
            self._uplink.answered(begun, Event.ANSWERED)
            metrics.rtt_s.set(self._uplink.rtt_s)

    async def events(self) -> AsyncGenerator[Down]:
        """Open the session and yield Opened, Commit, Reject, and at last Finish.

        Raises gateway.errors.ApiError; never ends without Finish.
        """
        frame = self._frame()
        with self._trace:
            try:
                async with (
                    self._uplink.transport.open(
                        frame, {**self._headers, **self._trace.headers}, self._within_s
                    ) as pieces,
                    aclosing(self._messages(pieces)) as messages,
                ):
                    async for message in messages:
                        self._note(message)
                        if not isinstance(message, Beat):
                            yield message
                        if isinstance(message, Finish):
                            return
                raise LinkDown("the verifier's stream has ended early", "broken")
            except LinkDown as cut:
                structlog.get_logger("edge_agent.link").info("link_cut", reason=cut.message)
                self._uplink.note(Event.LOST)
                raise
            except Draining:
                self._uplink.note(Event.DRAINS)
                raise
            finally:
                if self.opened:
                    self._uplink.sessions.dec()

    def _frame(self) -> bytes:
        try:
            frame = wire.encode(self._request)
        except LocalProtocolError as error:
            raise TooLarge(f"more than a session can begin with: {error}") from error
        self._uplink.metrics.link_bytes.labels("open").inc(len(frame))
        return frame

    def _note(self, message: Down) -> None:
        self._trace.note(message)
        match message:
            case Opened(session, limits) if not self.opened:
                self._session, self._limits = session, limits
                self._uplink.sessions.inc()
                self._uplink.note(Event.ANSWERED)
                self._when_opened(message)
                self._opened.set()
            case Commit(start=start, tokens=tokens) if start + len(tokens) > self.position:
                self.position = start + len(tokens)
                self._progress.token_came(time.monotonic(), self._limits)
            case Fault(code=code):
                if code == HANDOVER_FAULT:
                    self._uplink.note(Event.DRAINS)
                raise upstream_errors.from_fault(message)
            case _:
                self._progress.nothing_came(time.monotonic())

    async def _messages(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[Down]:
        """Yield the messages of the stream until it ends. Raises TimeoutError when it is silent
        for too long; before Opened, a busy host is waited for as for the first byte."""
        decoder = wire.Decoder(wire.MAX_DOWN_BYTES)
        try:
            while True:
                async with asyncio.timeout(SILENCE_S if self.opened else self._within_s):
                    piece = await anext(pieces, b"")
                if not piece:
                    return
                self._uplink.metrics.link_bytes.labels("down").inc(len(piece))
                for message in decoder.feed(piece):
                    if isinstance(message, Up):
                        raise RemoteProtocolError(f"{type(message).__name__} on the way down")
                    yield message
        except RemoteProtocolError as error:
            raise EngineFault(f"the verifier broke the protocol: {error}") from error
