"""The HTTP server of one process: uvicorn, HTTP/1.1, which answers while its service drains."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn

from gateway.drain import Drain
from gateway.hosting.connections.descriptors import be_brief_without_descriptors
from gateway.hosting.stopping import stopped_by_signals


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

    async def _close(self) -> None:
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the signals alone: uvicorn would stop listening at the first."""
        yield
