"""The HTTP server: granian, HTTP/2 with prior knowledge or by TLS, and HTTP/1.1."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from fastapi import FastAPI
from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP2Settings
from granian.log import LogLevels

from gateway.hosting import logs
from gateway.hosting.parent_death import end_with_parent
from gateway.hosting.settings_sources import ServerSettings

MAX_HEADERS_BYTES: Final = 64 * 1024
MAX_STREAMS: Final = 1024
"""Streams of one connection: an edge holds one for each session, and short ones for drafts."""


def serve(settings: ServerSettings, load: Callable[[], FastAPI]) -> None:
    """Serve until SIGTERM or SIGINT. Raises SystemExit(1) when the worker ends by itself.

    There is one worker, because a target exists once. load: returns the app; it is called in
    the worker.
    """
    http2 = HTTP2Settings(
        max_headers_size=MAX_HEADERS_BYTES, max_concurrent_streams=MAX_STREAMS
    )
    tls = settings.tls
    server = Granian(
        "app",  # unused: `load` returns the app
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        workers=1,
        loop=Loops.asyncio,
        http=HTTPModes.auto,
        websockets=False,
        http2_settings=http2,
        backpressure=MAX_STREAMS * 2,
        log_level=LogLevels.warning,
        ssl_cert=tls.certificate if tls else None,
        ssl_key=tls.key if tls else None,
        ssl_ca=tls.client_ca if tls else None,
        ssl_client_verify=tls is not None and tls.client_ca is not None,
        workers_kill_timeout=settings.stop_timeout_s,
    )
    server.serve(target_loader=partial(_load, settings, load), wrap_loader=False)


def _load(settings: ServerSettings, load: Callable[[], FastAPI]) -> FastAPI:
    end_with_parent(settings.stop_timeout_s)
    logs.configure(settings.log_format)
    return load()
