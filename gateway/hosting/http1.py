"""uvicorn's HTTP/1.1 with deadlines and a bound: by itself it waits without a limit for a
request that was begun, and for a client that does not read, and takes any connection."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from uvicorn.protocols.http.h11_impl import H11Protocol

from picospec.gateway.hosting.connections.crowd import Crowd
from picospec.gateway.http.client import UNREAD_S

REQUEST_S: Final = 30.0
"""The head of a request may take so long, from the connection or from its first byte, in
seconds: as long as granian allows at the verifier."""


class _Cut:
    """Cuts a connection some time after `start`, unless `stop` comes before."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._timer: asyncio.TimerHandle | None = None

    def start(self, transport: asyncio.Transport) -> None:
        """Do nothing if it has been started already."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._after_s, transport.abort)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class DeadlinesProtocol(H11Protocol):
    """Cuts a connection whose request does not come, or whose client reads nothing."""

    _unasked: _Cut
    _unread: _Cut
    _crowd: Crowd
    """The server sets it, in a class of its own."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._unasked, self._unread = _Cut(REQUEST_S), _Cut(UNREAD_S)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: for clients that vanish without a word
            connection = transport.get_extra_info("socket")
            limit_ms = int(UNREAD_S * 1000)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_ms)
        self._unasked.start(transport)
        self._crowd.enter(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unasked.stop()
        self._unread.stop()
        self._crowd.leave(self.transport)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._unasked.start(self.transport)
        else:
            self._unasked.stop()
            if not self.cycle.more_body:
                self._crowd.is_busy(self.transport)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # else the next request was there already
            self._crowd.is_idle(self.transport)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread.start(self.transport)

    def resume_writing(self) -> None:
        self._unread.stop()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, though its client may not have read the last answer."""
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():
            self.transport.abort()


def protocol(most: int) -> type[asyncio.Protocol]:
    """Return what a server makes of each connection. most: how many there may be."""

    class Bounded(DeadlinesProtocol):
        _crowd = Crowd(most)

    return Bounded
