"""A link in memory: HTTP/2 connections to an ASGI app in the same event loop, and their faults.

A client's transport (`Network.transport`) opens connections to the Links of its Network. Each
request has a Stream: what is put in at one end of a Way comes out at the other later, in
order, unless the link holds it back or loses it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import suppress
from contextvars import Context
from math import inf
from random import Random
from typing import Any, Final, Literal
from urllib.parse import unquote, urlsplit

from pyqwest import Headers, HTTPVersion, ReadError, Request, Response
from starlette.types import ASGIApp, Message

CONNECT_TIMEOUT_S: Final = 3.0
WINDOW_BYTES: Final = 1 << 20
"""A stream holds so many bytes that its reader has not taken, as those of HTTP/2 do."""

Gone = Literal["gone"]
GONE: Final[Gone] = "gone"
"""Comes out of a way whose sender has left early."""

Piece = bytes | Message | Gone | None
"""None: the sender has sent all."""


class Way:
    """One way of a stream. It ends with `fail`, and what was on the way is lost."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pieces = deque[tuple[float, Piece]]()
        self._bytes = 0
        self.pieces = 0
        """So many were put in."""

        self._changed = asyncio.Event()
        self.error: Exception | None = None

    def wake(self) -> None:
        self._changed.set()

    def fail(self, error: Exception) -> None:
        self.error = self.error or error
        self.wake()

    def add(self, piece: Piece) -> None:
        """Put a piece in, however much waits."""
        link, now_s = self._connection.link, asyncio.get_running_loop().time()
        arrival_s = now_s + link.delay_s + link.chance.uniform(0.0, link.jitter_s)
        if self._pieces:
            arrival_s = max(arrival_s, self._pieces[-1][0])
        self._pieces.append((arrival_s, piece))
        self.pieces += 1
        self._bytes += len(piece) if isinstance(piece, bytes) else 0
        self.wake()

    async def put(self, piece: bytes) -> None:
        """Put a piece in once there is room. Raises what ended the way."""
        while self._bytes > WINDOW_BYTES and self.error is None:
            await self._change(inf)
        if self.error is not None:
            raise self.error
        self.add(piece)

    async def get(self) -> Piece:
        """Return the next piece once it has arrived. Raises what ended the way."""
        while self.error is None:
            wait_s = inf
            if self._pieces and not self._connection.holds_back:
                wait_s = self._pieces[0][0] - asyncio.get_running_loop().time()
            if wait_s <= 0:
                _, piece = self._pieces.popleft()
                self._bytes -= len(piece) if isinstance(piece, bytes) else 0
                self.wake()
                return piece
            await self._change(wait_s)
        raise self.error

    async def _change(self, within_s: float) -> None:
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(None if within_s == inf else within_s):
                await self._changed.wait()


class Connection:
    """One connection of a client. is_dead: it delivers nothing for ever, and nobody knows."""

    def __init__(self, link: Link, version: HTTPVersion) -> None:
        self.link = link
        self.app = link.app
        self.version = version
        self.is_dead = self.is_closed = False
        self.streams = set[Stream]()
        link.connections.add(self)

    @property
    def holds_back(self) -> bool:
        return self.is_dead or self.link.is_silent or self.link.is_stopped

    def wake(self) -> None:
        for stream in self.streams:
            stream.up.wake()
            stream.down.wake()

    def close(self) -> None:
        """Reset the connection: both ends notice it at once."""
        self.is_closed = True
        self.link.connections.discard(self)
        for stream in tuple(self.streams):
            stream.reset()


class Stream:
    """A request to an app and its answer, which is an iterator of bytes."""

    def __init__(self, connection: Connection, request: Request) -> None:
        self.up, self.down = Way(connection), Way(connection)
        self.path = urlsplit(request.url).path
        self._connection = connection
        self._is_over = self._has_left = self._is_complete = False
        connection.streams.add(self)
        connection.link.note(request)
        self._sending = asyncio.create_task(self._send_up(request.content))
        run = self._run(connection.app, _scope(connection, request))
        self.task = asyncio.create_task(run, context=Context())
        self.task.add_done_callback(self._ended)

    def reset(self) -> None:
        """Both ends notice it at once."""
        self.up.fail(ConnectionError("reset"))
        self.down.fail(ReadError("reset"))

    # The client's end.

    async def head(self) -> Response:
        try:
            start = await self.down.get()
        except BaseException:
            await self.aclose()
            raise
        assert isinstance(start, dict)
        headers = Headers([(k.decode(), v.decode()) for k, v in start["headers"]])
        status, version = start["status"], self._connection.version
        return Response(status=status, http_version=version, headers=headers, content=self)

    async def _send_up(self, content: bytes | AsyncIterator[bytes]) -> None:
        try:
            if isinstance(content, bytes):
                await self.up.put(content)
            else:
                async for piece in content:
                    await self.up.put(bytes(piece))
            self.up.add(None)
        except ConnectionError:
            return
        except Exception as error:  # the request's own: its stream is reset
            self.down.fail(ReadError(str(error)))
            self.up.add(GONE)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = None if self._is_over else await self.down.get()
        if isinstance(piece, bytes):
            return piece
        self._is_over = True
        await self.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Leave: the app knows it when that arrives."""
        self._sending.cancel()
        if not self._has_left:
            self._has_left = True
            self.up.add(GONE)

    # The app's end.

    async def _run(self, app: ASGIApp | None, scope: dict[str, Any]) -> None:
        assert app is not None
        delay_s = self._connection.link.delay_s
        await asyncio.sleep(delay_s)
        try:
            await app(scope, self._receive, self._send)
        except Exception as error:  # the server's log has it, and the client a reset
            self._connection.link.errors.append(error)
        if not self._is_complete:
            self.down.fail(ReadError("stream reset"))

    def _ended(self, _: asyncio.Task[None]) -> None:
        self._connection.streams.discard(self)

    async def _receive(self) -> Message:
        try:
            piece = await self.up.get()
        except ConnectionError:
            piece = GONE
        if piece == GONE:
            self.up.fail(ConnectionError("the client has left"))
            self.down.fail(ConnectionError("the client has left"))
            return {"type": "http.disconnect"}
        assert not isinstance(piece, dict)
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    async def _send(self, message: Message) -> None:
        if isinstance(self.down.error, ReadError):
            raise ConnectionError("the client has left")
        if message["type"] == "http.response.start":
            return self.down.add(message)
        if body := message.get("body", b""):
            await self.down.put(bytes(body))
        if not message.get("more_body", False):
            self.down.add(None)
            self._is_complete = True


def _scope(connection: Connection, request: Request) -> dict[str, Any]:
    url = urlsplit(request.url)
    headers = [(k.lower().encode(), v.encode()) for k, v in request.headers.items()]
    if "host" not in request.headers:
        headers.append((b"host", url.netloc.encode()))
    if isinstance(request.content, bytes) and request.content:
        headers.append((b"content-length", str(len(request.content)).encode()))
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "2" if connection.version == HTTPVersion.HTTP2 else "1.1",
        "method": request.method, "scheme": url.scheme, "path": unquote(url.path),
        "raw_path": url.path.encode(), "query_string": url.query.encode(), "headers": headers,
        "server": (url.hostname, url.port), "client": ("127.0.0.1", 1), "root_path": "",
    }  # fmt: skip


class Link:
    """What leads to one address. app: None refuses, as where no process listens; later
    connections lead to another one that takes its place.

    delay_s: of each piece, one way. jitter_s: at most so much more, so that pieces of different
    streams overtake one another.
    """

    def __init__(self, app: ASGIApp | None = None) -> None:
        self.app = app
        self.delay_s = self.jitter_s = 0.0
        self.chance = Random(7)
        self.is_silent = self.is_stopped = self.refuses = False
        self.connections = set[Connection]()
        self.opened = 0
        """So many connections were opened."""

        self.requests = Counter[str]()
        """Counts requests by method and path, without the names of sessions."""

        self.sessions = list[str]()
        """The header of each Open, by which a proxy finds the session's verifier."""

        self.errors = list[Exception]()
        """The app has raised these errors."""

    async def connect(self, version: HTTPVersion) -> Connection:
        """Raises OSError."""
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            while self.is_silent:  # noqa: ASYNC110 - a virtual clock
                await asyncio.sleep(0.1)
            await asyncio.sleep(2 * self.delay_s)
        if self.refuses or self.app is None:
            raise ConnectionError("Connection refused")
        self.opened += 1
        return Connection(self, version)

    def note(self, request: Request) -> None:
        path = urlsplit(request.url).path
        if path.endswith("/drafts"):
            path = "/drafts"
        self.requests[f"{request.method} {path}"] += 1
        if path == "/v1/speculate":
            self.sessions.append(request.headers["picospec-session"])

    # Faults.

    def cut(self) -> None:
        """Reset all connections."""
        for connection in tuple(self.connections):
            connection.close()

    def streams(self, path: str) -> list[Stream]:
        """Return the requests of this path that run: `reset` cuts one, and leaves the rest."""
        each = (stream for connection in self.connections for stream in connection.streams)
        return [stream for stream in each if stream.path == path]

    def silence(self, is_silent: bool = True) -> None:
        """Deliver nothing, and let nobody connect, as over a radio link without reception."""
        self.is_silent = is_silent
        self._wake()

    def stop(self, is_stopped: bool = True) -> None:
        """Deliver nothing, though one can connect, as to a process that stands still."""
        self.is_stopped = is_stopped
        self._wake()

    def half_open(self) -> None:
        """Never deliver anything on the connections that there are; others work."""
        for connection in self.connections:
            connection.is_dead = True

    def _wake(self) -> None:
        for connection in self.connections:
            connection.wake()


class Transport:
    """pyqwest's Transport over the links of a network: one connection to each address, or with
    HTTP/1.1 one to each request."""

    def __init__(self, network: Network, version: HTTPVersion) -> None:
        self._network = network
        self._version = version
        self._connections: dict[str, Connection] = {}
        self._connecting = asyncio.Lock()

    async def execute(self, request: Request) -> Response:
        return await Stream(
            await self._connection(urlsplit(request.url).netloc), request
        ).head()

    async def _connection(self, address: str) -> Connection:
        link = self._network[address]
        if self._version != HTTPVersion.HTTP2:
            return await link.connect(self._version)
        async with self._connecting:
            connection = self._connections.get(address)
            if connection is None or connection.is_closed:
                connection = self._connections[address] = await link.connect(self._version)
        return connection


class Network(dict[str, Link]):
    """The links by their addresses, host and port. Nothing listens at any other one."""

    def __missing__(self, address: str) -> Link:
        return Link()

    def transport(
        self, *, http_version: HTTPVersion | None = HTTPVersion.HTTP2, **_: object
    ) -> Transport:
        """Takes the place of pyqwest.HTTPTransport."""
        return Transport(self, http_version or HTTPVersion.HTTP1)
