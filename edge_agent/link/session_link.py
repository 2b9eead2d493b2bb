"""One session's link to the verifier: messages down, drafts up, across cuts.

`events` opens the session and yields the verifier's messages. A stream that is cut, or silent
for long, is resumed from the position reached; the session may then get a message twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import httpx
import structlog

from edge_agent.link import upstream_errors
from edge_agent.link.posts import Posts
from edge_agent.link.retry import attempts
from edge_agent.metrics import EdgeMetrics
from gateway.errors import EngineFault, NotFound, Unavailable
from speculation.protocol import wire
from speculation.protocol.errors import RemoteProtocolError
from speculation.protocol.messages import Commit, Down, Fault, Finish, Open, Opened, Up

RESPONSE_TIMEOUT_S: Final = 10.0
"""Time until the first byte of a stream's response."""

CANCEL_TIMEOUT_S: Final = 1.0

SILENCE_S: Final = 15.0
"""Time without a byte after which a stream is resumed, because its connection may be dead."""


class Link:
    """Run `post` concurrently with `events`, then `cancel`; after a Finish it does nothing."""

    def __init__(
        self, client: httpx.AsyncClient, posts: Posts, request: Open, metrics: EdgeMetrics
    ) -> None:
        self._client = client
        self._request = request
        self._metrics = metrics
        self._posts = posts
        self.send = posts.send
        self._path = ""
        self._window_s = 0.0
        self._opened = asyncio.Event()
        self._position = 0
        self._ended = False
        self._log = structlog.get_logger("edge_agent.link.session_link")

    async def post(self) -> None:
        """Send what `send` is given, once the session is open, until cancelled.

        Raises gateway.errors.ApiError.
        """
        await self._opened.wait()
        await self._posts.run(f"{self._path}/drafts", self._window_s)

    async def events(self) -> AsyncGenerator[Down]:
        """Open the session and yield Opened, Commit, Reject, and at last Finish.

        Raises gateway.errors.ApiError; never ends without Finish.
        """
        response = await self._open()
        while True:
            async with aclosing(self._messages(response)) as messages:
                async for message in messages:
                    self._note(message)
                    yield message
            if self._ended:
                return
            response = await self._resume()

    async def cancel(self) -> None:
        """End the session at the verifier, if it is open. Raises nothing."""
        if not self._path or self._ended:
            return
        self._ended = True
        try:
            await self._client.delete(self._path, timeout=CANCEL_TIMEOUT_S)
        except httpx.TransportError as error:
            self._log.info("cancel_not_delivered", session=self._path, reason=repr(error))

    def _note(self, message: Down) -> None:
        match message:
            case Opened(session, limits):
                self._path = f"/v1/speculate/{session}"
                self._window_s = limits.resume_window_s
                self._opened.set()
            case Commit(start=start, tokens=tokens):
                self._position = max(self._position, start + len(tokens))
            case Finish():
                self._ended = True
            case Fault():
                self._ended = True
                raise upstream_errors.from_fault(message)

    async def _messages(self, response: httpx.Response) -> AsyncGenerator[Down]:
        """Yield the messages of one stream until it ends, is cut, or is silent for too long."""
        decoder, chunks = wire.Decoder(), response.aiter_raw()
        try:
            while True:
                async with asyncio.timeout(SILENCE_S):
                    chunk = await anext(chunks, b"")
                if not chunk:
                    return
                self._metrics.link_bytes.labels("down").inc(len(chunk))
                for message in decoder.feed(chunk):
                    if isinstance(message, Up):
                        raise RemoteProtocolError(f"{type(message).__name__} on the way down")
                    yield message
        except (httpx.TransportError, TimeoutError) as cut:
            self._log.info("link_cut", session=self._path, reason=repr(cut))
        except RemoteProtocolError as error:
            raise EngineFault(f"the verifier broke the protocol: {error}") from error
        finally:
            await response.aclose()

    async def _open(self) -> httpx.Response:
        """Open the session, with a second attempt: a connection closed while it was idle is
        noticed only when it is used."""
        frame = wire.encode(self._request)
        self._metrics.link_bytes.labels("open").inc(len(frame))
        try:
            try:
                return await self._stream("POST", "/v1/speculate", frame)
            except httpx.TransportError as error:
                if upstream_errors.is_connection_refused(error):
                    raise
            return await self._stream("POST", "/v1/speculate", frame)
        except httpx.TransportError as error:
            raise upstream_errors.unreachable(self._client.base_url, error) from error

    async def _resume(self) -> httpx.Response:
        """Return a stream that continues from the position reached."""
        if not self._path:
            raise Unavailable("the verifier went away before the session was open")
        self._metrics.resumes.inc()
        try:
            async for attempt in attempts(self._window_s):
                with attempt:
                    return await self._stream("GET", f"{self._path}?from={self._position}")
        except httpx.TransportError as error:
            raise upstream_errors.unreachable(self._client.base_url, error) from error
        except NotFound as error:
            raise Unavailable("the verifier lost the session", code="session_lost") from error
        raise Unavailable("the verifier went away")

    async def _stream(self, method: str, path: str, content: bytes = b"") -> httpx.Response:
        """Return a response whose body is still to be read; raise ApiError if it is no 200."""
        request = self._client.build_request(method, path, content=content, timeout=None)
        try:
            async with asyncio.timeout(RESPONSE_TIMEOUT_S):
                response = await self._client.send(request, stream=True)
                if response.status_code == 200:
                    return response
                await response.aread()
        except TimeoutError as error:
            raise httpx.ReadTimeout("no answer", request=request) from error
        raise upstream_errors.from_response(response)
