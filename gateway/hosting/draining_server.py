"""The HTTP server of one process: uvicorn, HTTP/1.1, which answers while its service drains."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import uvicorn

from picospec.gateway.drain import Drain
from picospec.gateway.hosting.connections.descriptors import be_brief_without_descriptors
from picospec.gateway.hosting.stopping import stopped_by_signals

MAX_UNACCEPTED: Final = 4096
"""Connections that may wait in the kernel to be accepted, of which uvicorn's `backlog` are
accepted in one go. A client whose connection finds no room tries again after a second."""


class DrainingServer(uvicorn.Server):
    """SIGTERM drains its service; a second one, or SIGINT, waits for nothing that runs."""

    def __init__(self, config: uvicorn.Config, drain: Drain, drain_timeout_s: float) -> None:
        super().__init__(config)
        self._drain = drain
        self._drain_timeout_s = drain_timeout_s

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        be_brief_without_descriptors(asyncio.get_running_loop())
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
        """Leave the signals alone: uvicorn would stop listening at the first."""
        yield
