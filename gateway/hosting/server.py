"""Runs the HTTP server granian: HTTP/2 with prior knowledge or by TLS, and HTTP/1.1.

The process that the caller starts has a worker, and passes signals on to it: SIGTERM as it is,
a second SIGTERM and SIGINT as `STOP_AT_ONCE`, because the worker's server closes at a SIGINT.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any, ClassVar, Final

import uvicorn
from fastapi import FastAPI
from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP2Settings
from granian.log import LogLevels
from granian.server.common import AbstractServer
from granian.server.embed import Server
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from gateway.drain import Drain, start, stopped_by_signals
from gateway.hosting import logs
from gateway.hosting.limits import (
    limit_accept_error_logs,
    max_connections,
    raise_limit,
)
from gateway.hosting.parent_death import end_with_parent
from gateway.hosting.settings import ServerSettings
from gateway.http import UNREAD_S
from gateway.system import KNOWS_CONNECTIONS, STOP_AT_ONCE, connections

# Cuts connections on which no request comes, for a server that waits without a limit.
#
# granian waits for ever for the first bytes of a connection, which tell the version of HTTP,
# and keeps one of HTTP/2 that only answers pings. Linux knows how many bytes have come on each
# connection, and its client, so a thread asks Linux. While many connections are taken, those
# without a request give way.

FIRST_S: Final = 30.0
"""The first bytes of a connection may take this many seconds: as many as the edge allows."""

FIRST_CROWDED_S: Final = 3.0
"""This limit replaces FIRST_S while more than half of the allowed connections are taken. It is
several round trips of any link."""

FIRST_BYTES: Final = 24
"""A connection counts as silent until this many bytes have come: the preface of HTTP/2 (RFC
9113, 3.4) has as many, and no shorter text is a request in HTTP/1.1."""

CHECK_INTERVAL_S: Final = 1.0
"""This many seconds are between two checks of the connections. A check takes a millisecond, and
30 ms with 2,048 connections."""

Peer = tuple[str, int]
"""The address and the port of a client's end of a connection."""


class Asking:
    """An ASGI app around another one that knows which connections carry requests. Its loop's
    thread notes them, and another one asks."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._running: Counter[Peer] = Counter()
        self._idle_since: dict[Peer, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not (client := scope.get("client")):
            return await self._app(scope, receive, send)
        peer = client[0], int(client[1])  # granian's port is a text
        self._running[peer] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._idle_since[peer] = time.monotonic()
            self._running[peer] -= 1
            if not self._running[peer]:
                del self._running[peer]

    def idle_s(self, peer: Peer) -> float:
        """Return for how long a connection has been without a request; from the first time that
        this is asked if it never had one."""
        if peer in self._running:
            return 0.0
        now = time.monotonic()
        return now - self._idle_since.setdefault(peer, now)

    def keep(self, open: Collection[Peer]) -> None:
        """Forget all connections but these, which are open."""
        for gone in {*list(self._idle_since)}.difference(open):
            self._idle_since.pop(gone, None)


def cut_silent(port: int, most: int, asking: Asking | None = None) -> None:
    """Begin to cut silent connections to `port`, for as long as this process lives. Only Linux
    has the figures for this. most: limit of connections. asking: knows which are idle; None if
    the server cuts these itself."""

    def watch() -> None:
        max_silence_s, max_idle_s = FIRST_S, math.inf
        while True:
            time.sleep(CHECK_INTERVAL_S)
            with suppress(OSError):  # there is no descriptor left for the check
                count = cut_if_silent(port, max_silence_s, asking, max_idle_s)
                is_crowded = count > most // 2
                max_silence_s = FIRST_CROWDED_S if is_crowded else FIRST_S
                max_idle_s = FIRST_CROWDED_S if is_crowded else math.inf
                max_idle_s = CHECK_INTERVAL_S if count >= most else max_idle_s

    if KNOWS_CONNECTIONS:
        threading.Thread(target=watch, name="silent connections", daemon=True).start()


def cut_if_silent(
    port: int, max_silence_s: float, asking: Asking | None = None, max_idle_s: float = math.inf
) -> int:
    """Return the number of connections to `port`, and cut those silent for `max_silence_s`, or
    without a request for `max_idle_s`."""
    peers = list[Peer]()
    for connection, silent_ms, received_bytes in connections():
        with suppress(OSError):  # it is closed meanwhile
            if connection.getsockname()[1] != port:
                continue
            address, remote, *_ = connection.getpeername()
            peer = address.partition("%")[0], remote
            peers.append(peer)
            idle_s = asking.idle_s(peer) if asking else 0.0
            is_silent = received_bytes < FIRST_BYTES and silent_ms > max_silence_s * 1000
            if is_silent or idle_s > max_idle_s:
                connection.shutdown(socket.SHUT_RDWR)
    if asking:
        asking.keep(peers)
    return len(peers)


# Runs the HTTP/1.1 server of one process: uvicorn, with deadlines and a bound on connections.
#
# The server answers while its service drains. By itself uvicorn waits without a limit for the
# rest of a request and for a client that does not read, and accepts any connection. A
# connection is idle until a whole request has come, and again once its answer is complete. A
# connection above the bound cuts the one that has been idle for longest, whose client can
# connect again; if all others are busy, the new one itself is cut. So nobody locks out others
# by connections without requests, and no running answer is cut.

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


CLOSE_S: Final = 2.0
"""A port that is served beside another may take this many seconds to close."""

MAX_HEADERS_BYTES: Final = 64 * 1024
MAX_STREAMS: Final = 1024
"""One connection has at most this many streams: an edge holds one for each session, and short
ones for drafts."""

PING_MS: Final = 20_000
PONG_S: Final = 20
"""Each connection of HTTP/2 gets a ping every PING_MS milliseconds, and must answer it within
PONG_S seconds. An edge that vanished silently would otherwise hold its streams for the quarter
of an hour in which TCP retransmits."""


def serve(settings: ServerSettings, load: Callable[[], FastAPI]) -> None:
    """Serve until SIGTERM or SIGINT. Raises SystemExit(1) if the worker ends by itself.

    At SIGTERM the worker drains first, if its app does so. There is one worker, because there
    is one target.

    load: returns the app; called in the worker.
    """
    connections = max_connections(raise_limit())
    server = Granian(
        "app",  # unused: `load` returns the app
        interface=Interfaces.ASGI,
        workers=1,
        loop=Loops.asyncio,
        log_level=LogLevels.warning,
        workers_kill_timeout=math.ceil(settings.drain_timeout_s) + settings.stop_timeout_s,
        **of_port(settings, connections),
    )
    logging.getLogger("_granian").addFilter(partial(_is_news, server))
    server.on_startup(partial(_pass_signals_on, server, settings.stop_timeout_s))
    server.serve(target_loader=partial(_load, settings, load, connections), wrap_loader=False)


def of_port(settings: ServerSettings, connections: int) -> dict[str, Any]:
    """Return granian's options for the port of a service."""
    tls = settings.tls
    return {
        "address": settings.host,
        "port": settings.port,
        "http": HTTPModes.auto,
        "websockets": False,
        "http2_settings": HTTP2Settings(
            max_headers_size=MAX_HEADERS_BYTES,
            max_concurrent_streams=MAX_STREAMS,
            keep_alive_interval=PING_MS,
            keep_alive_timeout=PONG_S,
        ),
        "backpressure": connections,
        "ssl_cert": tls.certificate if tls else None,
        "ssl_key": tls.key if tls else None,
        "ssl_ca": tls.client_ca if tls else None,
        "ssl_client_verify": tls is not None and tls.client_ca is not None,
    }


def check_free(service: str, host: str, port: int, *, shared: bool = False) -> None:
    """Raise OSError if a service cannot have its port: granian does not notice, and uvicorn
    does not say which it is. service: its name, such as "edge".

    shared: True if several processes of this service share the port; the kernel then spreads
    connections over them.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family, reuse_port=shared).close()
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]  # what follows repeats the address
        raise OSError(
            f"port {port} of {host} cannot be had: {reason}; choose another with"
            f" PICOSPEC_{service.upper()}__PORT"
        ) from error


@asynccontextmanager
async def served_alongside(settings: ServerSettings, app: ASGIApp) -> AsyncGenerator[None]:
    """Serve an app on another port in this process and event loop, beside a server that runs
    the app's lifespan."""
    connections, asking = max_connections(raise_limit()), Asking(app)
    server = Server(
        asking,
        interface=Interfaces.ASGINL,
        log_level=LogLevels.error,  # granian warns that it is embedded
        **of_port(settings, connections),
    )
    serving = start(server.serve())
    cut_silent(settings.port, connections, asking)
    try:
        yield
    finally:
        server.stop()  # type: ignore[no-untyped-call]
        await asyncio.wait([serving], timeout=CLOSE_S)


def _is_news(server: AbstractServer[Any], record: logging.LogRecord) -> bool:
    """Return False for granian's line about the end of a worker that has itself said why it
    ends with status 1; a killed one has not."""
    statuses = [getattr(worker.inner, "exitcode", None) for worker in server.wrks]
    return statuses != [1] or not str(record.msg).startswith("Unexpected exit")


def _load(settings: ServerSettings, load: Callable[[], FastAPI], connections: int) -> ASGIApp:
    end_with_parent(STOP_AT_ONCE, settings.stop_timeout_s)
    logs.configure(settings.log_format)
    asking = Asking(load())
    cut_silent(settings.port, connections, asking)
    settle()
    return asking


def settle() -> None:
    """Leave all objects that exist, those of a loaded service, out of later collections of
    garbage. Nothing else runs during a collection, and a large body causes some: with these
    objects each takes 60 to 130 ms, and 20 to 40 without."""
    gc.collect()
    gc.freeze()


def _pass_signals_on(server: AbstractServer[Any], stop_timeout_s: int) -> None:
    """Replace the signal handlers of this process's server, which ignore a second signal."""

    def stop(number: int, _: FrameType | None) -> None:
        if server.interrupt_signal or number == signal.SIGINT:
            server.workers_kill_timeout = stop_timeout_s
            for worker in multiprocessing.active_children():
                if worker.pid is not None:
                    os.kill(worker.pid, STOP_AT_ONCE)
        server.signal_handler_interrupt()  # type: ignore[no-untyped-call]

    signal.signal(STOP_AT_ONCE, signal.SIG_IGN)  # until a worker has a handler
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
