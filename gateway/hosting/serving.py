"""Runs the HTTP server granian: HTTP/2 with prior knowledge or by TLS, and HTTP/1.1.

The process that the caller starts has a worker, and passes signals on to it: SIGTERM as it is,
a second SIGTERM and SIGINT as `STOP_AT_ONCE`, because the worker's server closes at a SIGINT.
"""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import os
import signal
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from types import FrameType
from typing import Any, Final

from fastapi import FastAPI
from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP2Settings
from granian.log import LogLevels
from granian.server.common import AbstractServer
from granian.server.embed import Server
from starlette.types import ASGIApp

from picospec.gateway.hosting import logs
from picospec.gateway.hosting.descriptors import max_connections, raise_limit
from picospec.gateway.hosting.parent_death import end_with_parent
from picospec.gateway.hosting.settings import ServerSettings
from picospec.gateway.hosting.silent import cut_silent

STOP_AT_ONCE: Final = signal.SIGUSR1
"""This signal makes a worker stop without waiting for its running work."""

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


def check_free(settings: ServerSettings, *, shared: bool) -> None:
    """Raise OSError if a service's port is taken, which granian does not notice.

    shared: True if several processes of this service share the port; the kernel then spreads
    connections over them.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    address = (settings.host, settings.port)
    socket.create_server(address, family=family, reuse_port=shared).close()


@asynccontextmanager
async def served_beside(settings: ServerSettings, app: ASGIApp) -> AsyncGenerator[None]:
    """Serve an app on another port in this process and event loop, beside a server that runs
    the app's lifespan."""
    connections = max_connections(raise_limit())
    server = Server(
        app,
        interface=Interfaces.ASGINL,
        log_level=LogLevels.error,  # granian warns that it is embedded
        **of_port(settings, connections),
    )
    serving = asyncio.create_task(server.serve())
    cut_silent(settings.port, connections)
    try:
        yield
    finally:
        server.stop()  # type: ignore[no-untyped-call]
        await asyncio.wait([serving], timeout=CLOSE_S)


def _load(settings: ServerSettings, load: Callable[[], FastAPI], connections: int) -> FastAPI:
    cut_silent(settings.port, connections)
    end_with_parent(STOP_AT_ONCE, settings.stop_timeout_s)
    logs.configure(settings.log_format)
    return load()


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
