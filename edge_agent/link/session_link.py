"""One session's link to its verifier: messages down, drafts up, across cuts.

`events` opens the session and yields the verifier's messages. A stream that is cut, or without
a byte for three beats, is resumed from the position reached; the session may then get a message
twice. The session is given up, and Unavailable raised, when the verifier has lost it, or when
another verifier can take over and this one has not come back within a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Final

import httpx
import structlog

from picospec.edge_agent.link import upstream_errors
from picospec.edge_agent.link.connection import Connection, session_headers
from picospec.edge_agent.link.health import Health
from picospec.edge_agent.link.posts import Posts
from picospec.edge_agent.link.progress import Progress
from picospec.edge_agent.link.reading import ask, whole
from picospec.edge_agent.link.retry import RESUME_S, Retries, attempts
from picospec.edge_agent.link.session_trace import SessionTrace
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.gateway.errors import EngineFault, NotFound, TooLarge, Unavailable
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

CANCEL_TIMEOUT_S: Final = 2.0

SILENCE_S: Final = 3 * BEAT_S
"""Time without a byte after which an open session's stream is resumed, because its connection
may be dead."""


class Link:
    """Run `post` concurrently with `events`, then `cancel`; after a Finish it does nothing."""

    def __init__(
        self,
        connection: Connection,
        health: Health,
        request: Open,
        metrics: EdgeMetrics,
        retries: Retries,
        trace: SessionTrace,
    ) -> None:
        self._connection = connection
        self._health = health
        self._request = request
        self._metrics = metrics
        self._retries = retries
        self._trace = trace
        self._headers = session_headers()
        self._posts = Posts(partial(connection.post, headers=self._headers), health, metrics)
        self.send = self._posts.send
        self.position = len(request.committed)
        """How many output tokens have come, those of sessions before included."""

        self.lost_at: float | None = None
        """When the stream was lost; None while there is one."""

        self._path = ""
        self._limits = Limits()
        self._opened = asyncio.Event()
        self._ended = False
        self._log = structlog.get_logger("edge_agent.link.session_link")

    @property
    def opened(self) -> bool:
        """Whether the verifier has taken the session."""
        return bool(self._path)

    async def post(self) -> None:
        """Send what `send` is given, once the session is open, until cancelled.

        Raises gateway.errors.ApiError.
        """
        await self._opened.wait()
        await self._posts.run(f"{self._path}/drafts", self._limits.resume_window_s)

    async def events(self) -> AsyncGenerator[Down]:
        """Open the session and yield Opened, Commit, Reject, and at last Finish.

        Raises gateway.errors.ApiError; never ends without Finish.
        """
        with self._trace:
            response = await self._open()
            progress = Progress(time.monotonic())
            try:
                while True:
                    async with aclosing(self._messages(response)) as messages:
                        async for message in messages:
                            self._note(message, progress)
                            if not isinstance(message, Beat):
                                yield message
                    if self._ended:
                        return
                    progress.nothing_came(time.monotonic())
                    response = await self._resume()
            finally:
                if self.opened:
                    self._health.sessions.dec()

    async def cancel(self, within_s: float = 0.0) -> None:
        """End the session at the verifier, if it is open; try for so long. Raises nothing."""
        if not self._path or self._ended:
            return
        self._ended = True
        try:
            async for attempt in attempts(within_s):
                with attempt:
                    client = self._connection.client
                    await ask(
                        client, "DELETE", self._path, CANCEL_TIMEOUT_S, headers=self._headers
                    )
        except httpx.TransportError as error:
            self._log.info("cancel_not_delivered", reason=upstream_errors.reason(error))

    def _note(self, message: Down, progress: Progress) -> None:
        self._trace.note(message)
        match message:
            case Opened(session, limits) if not self._path:
                self._path = f"/v1/speculate/{session}"
                self._limits = limits
                self._health.sessions.inc()
                self._opened.set()
            case Commit(start=start, tokens=tokens) if start + len(tokens) > self.position:
                self.position = start + len(tokens)
                progress.token_came(time.monotonic(), self._limits)
            case Finish():
                self._ended = True
            case Fault():
                self._ended = True
                raise upstream_errors.from_fault(message)
            case _:
                progress.nothing_came(time.monotonic())

    @property
    def _silence_s(self) -> float:
        """How long the stream may be silent. It cannot be resumed before it is open, so a host
        that is busy then is waited for as for the response."""
        return SILENCE_S if self.opened else self._retries.open_timeout_s(0)

    async def _messages(self, response: httpx.Response) -> AsyncGenerator[Down]:
        """Yield the messages of one stream until it ends, is cut, or is silent for too long."""
        decoder, chunks = wire.Decoder(wire.MAX_DOWN_BYTES), response.aiter_raw()
        client = self._connection.client
        try:
            while True:
                async with asyncio.timeout(self._silence_s):
                    chunk = await anext(chunks, b"")
                if not chunk:
                    break
                self._metrics.link_bytes.labels("down").inc(len(chunk))
                for message in decoder.feed(chunk):
                    if isinstance(message, Up):
                        raise RemoteProtocolError(f"{type(message).__name__} on the way down")
                    yield message
        except (httpx.TransportError, TimeoutError) as cut:
            self._log.info("link_cut", reason=upstream_errors.reason(cut))
            if isinstance(cut, TimeoutError):
                self._connection.renew(client)
        except RemoteProtocolError as error:
            raise EngineFault(f"the verifier broke the protocol: {error}") from error
        finally:
            await response.aclose()
        if not self._ended:
            self.lost_at = time.monotonic()
            self._health.set_reachable(False)

    async def _open(self) -> httpx.Response:
        """Open the session, with a second attempt: a connection closed while it was idle is
        noticed only when it is used."""
        try:
            frame = wire.encode(self._request)
        except LocalProtocolError as error:
            raise TooLarge(f"more than a session can begin with: {error}") from error
        self._metrics.link_bytes.labels("open").inc(len(frame))
        timeout_s = self._retries.open_timeout_s(len(frame))
        try:
            try:
                return await self._stream("POST", "/v1/speculate", timeout_s, frame)
            except httpx.TransportError as error:
                hangs = isinstance(error, httpx.TimeoutException) and self._retries.elsewhere()
                if hangs or upstream_errors.is_connection_refused(error):
                    raise
            return await self._stream("POST", "/v1/speculate", timeout_s, frame)
        except httpx.TransportError as error:
            self._health.set_reachable(False)
            raise upstream_errors.unreachable(self._connection.url, error) from error

    async def _resume(self) -> httpx.Response:
        """Return a stream that continues from the position reached."""
        if not self._path:
            raise Unavailable("the verifier went away before the session was open")
        self._metrics.resumes.inc()
        path = f"{self._path}?from={self.position}"
        try:
            async for attempt in attempts(self._retries.within_s, self._is_worth_resuming):
                with attempt:
                    response = await self._stream("GET", path, self._retries.resume_timeout_s)
                    self.lost_at = None
                    self._health.set_reachable(True)
                    return response
        except httpx.TransportError as error:
            raise upstream_errors.unreachable(self._connection.url, error) from error
        except NotFound as error:
            raise Unavailable("the verifier lost the session", code="session_lost") from error
        raise Unavailable("the verifier went away")

    def _is_worth_resuming(self, error: Exception) -> bool:
        """Return whether to try again. A refused connection means that the process is gone, and
        the session with it, unless there is a proxy that is restarting."""
        if not self._retries.elsewhere():
            return True
        lost_s = time.monotonic() - (self.lost_at or 0.0)
        return lost_s < RESUME_S and not upstream_errors.is_connection_refused(error)

    async def _stream(
        self, method: str, path: str, timeout_s: float, content: bytes = b""
    ) -> httpx.Response:
        """Return a response whose body is still to be read; raise ApiError if it is no 200."""
        client = self._connection.client
        headers = {**self._headers, **self._trace.headers}
        request = client.build_request(
            method, path, headers=headers, content=content, timeout=None
        )
        try:
            async with asyncio.timeout(timeout_s):
                response = await client.send(request, stream=True)
                if response.status_code == 200:
                    return response
                response = await whole(response)
        except TimeoutError as error:
            self._connection.renew(client)
            raise httpx.ReadTimeout("no answer", request=request) from error
        raise upstream_errors.from_response(response)
