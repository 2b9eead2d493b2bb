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

from gateway.background_work import start
from gateway.hosting import logs
from gateway.hosting.idle_connections import Asking, cut_silent
from gateway.hosting.limits import max_connections, raise_limit
from gateway.hosting.parent_death import end_with_parent
from gateway.hosting.settings import ServerSettings
from gateway.system import STOP_AT_ONCE

CLOSE_S: Final = 2.0
"""A port that is served beside another may take this many seconds to close."""

MAX_STREAMS: Final = 1024
"""One connection has at most this many streams: an edge holds one for each session, and short
ones for drafts."""

PING_S: Final = 20
"""Each connection of HTTP/2 to a verifier gets a ping at this interval."""

PONG_S: Final = 20
"""A ping must be answered within this many seconds. An edge that vanished silently would
otherwise hold its streams for the quarter of an hour in which TCP retransmits."""


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
            max_headers_size=64 * 1024,
            max_concurrent_streams=MAX_STREAMS,
            keep_alive_interval=PING_S * 1000,
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
