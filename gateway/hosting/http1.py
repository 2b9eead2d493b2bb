"""Runs the HTTP/1.1 server of one process: uvicorn, with deadlines and a bound on connections.

The server answers while its service drains. By itself uvicorn waits without a limit for the
rest of a request and for a client that does not read, and accepts any connection. A
connection is idle until a whole request has come, and again once its answer is complete. A
connection above the bound cuts the one that has been idle for longest, whose client can
connect again; if all others are busy, the new one itself is cut. So nobody locks out others
by connections without requests, and no running answer is cut.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import ClassVar, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gateway.drain import Drain, stopped_by_signals
from gateway.hosting.limits import limit_accept_error_logs
from gateway.http import UNREAD_S

REQUEST_S: Final = 30.0
"""The head of a request may take this many seconds, from the connection or from its first byte:
as many as granian allows at the verifier."""

MAX_UNACCEPTED: Final = 4096
"""At most this many connections wait in the kernel to be accepted, of which uvicorn's `backlog`
are accepted in one go. A client whose connection finds no room tries again after a second."""


class DrainingServer(uvicorn.Server):
    """Drains its service at SIGTERM; a second SIGTERM, or SIGINT, stops it without waiting."""

    def __init__(self, config: uvicorn.Config, drain: Drain, drain_timeout_s: float) -> None:
        super().__init__(config)
        self._drain = drain
        self._drain_timeout_s = drain_timeout_s

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        limit_accept_error_logs(asyncio.get_running_loop())
        async with stopped_by_signals(
            self._drain,
            self._drain_timeout_s,
            self._close,
            at_once=signal.SIGINT,
            second_is_at_once=True,
        ):
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in (each for server in self.servers for each in server.sockets):
            with socket.socket(fileno=os.dup(listening.fileno())) as same:
                same.listen(MAX_UNACCEPTED)

    async def _close(self) -> None:
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Do not handle signals here: uvicorn would stop listening at the first."""
        yield


class _Deadline:
    """Cuts a connection `after_s` seconds after `start`, unless `stop` is called before."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._timer: asyncio.TimerHandle | None = None

    def start(self, transport: asyncio.Transport) -> None:
        """Start the timer, unless it runs already."""
        if self._timer is None:
            self._timer = self._begin(transport)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self, transport: asyncio.Transport) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self._after_s, transport.abort)


class _ReadingDeadline(_Deadline):
    """Begins again each time that less is unread at its end than at its beginning."""

    def _begin(self, transport: asyncio.Transport) -> asyncio.TimerHandle:
        unread = transport.get_write_buffer_size()
        return asyncio.get_running_loop().call_later(
            self._after_s, self._end, transport, unread
        )

    def _end(self, transport: asyncio.Transport, unread: int) -> None:
        if transport.get_write_buffer_size() < unread:
            self._timer = self._begin(transport)
        else:
            transport.abort()


class DeadlinesProtocol(H11Protocol):
    """Cuts a connection whose request does not come, whose client reads nothing, or that
    exceeds the bound."""

    _max_connections: ClassVar[int]
    _open: ClassVar[set[asyncio.Transport]]
    _idle: ClassVar[dict[asyncio.Transport, None]]
    """Holds the idle connections in the order in which they became idle."""

    _request_deadline: _Deadline
    _reading_deadline: _ReadingDeadline

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._request_deadline = _Deadline(REQUEST_S)
        self._reading_deadline = _ReadingDeadline(UNREAD_S)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: for clients that vanish silently
            connection = transport.get_extra_info("socket")
            limit_ms = int(UNREAD_S * 1000)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_ms)
        self._request_deadline.start(transport)
        self._open.add(transport)
        self._idle[transport] = None
        if len(self._open) > self._max_connections:
            longest = next(iter(self._idle))
            del self._idle[longest]
            longest.abort()  # connection_lost is called a moment later

    def connection_lost(self, exc: Exception | None) -> None:
        self._request_deadline.stop()
        self._reading_deadline.stop()
        self._open.discard(self.transport)
        self._idle.pop(self.transport, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._request_deadline.start(self.transport)
        else:
            self._request_deadline.stop()
            if not self.cycle.more_body:
                self._idle.pop(self.transport, None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        is_idle = self.cycle.response_complete  # otherwise the next request has already begun
        if is_idle and not self.transport.is_closing():
            self._idle.setdefault(self.transport, None)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading_deadline.start(self.transport)

    def resume_writing(self) -> None:
        self._reading_deadline.stop()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, even if its client has not read the last answer."""
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():
            self.transport.abort()


def protocol(max_connections: int) -> type[asyncio.Protocol]:
    """Return the protocol class for a server with at most this many connections."""

    class Bounded(DeadlinesProtocol):
        _max_connections, _open, _idle = max_connections, set(), {}

    return Bounded
