"""One TCP connection carried over two paths, which deliver bytes, ends and resets late.

* What enters a lane leaves it at the time its path gives, never before what entered earlier.
* A lane holds at most `max_in_flight_bytes`; beyond that its sender is not read.
* An end in one direction leaves the other open (half-close); a reset ends both.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import cast

from picospec.bench.link.path import SEGMENT_BYTES, Path

TICK_S = 0.001
"""The event loop's timers are no finer. A lane wakes half of it early and sends what is due
half of it later, so that the error is symmetric and neighbours share a wake-up."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Ending(Enum):
    """What may follow the last byte of a direction."""

    EOF = "eof"
    RESET = "reset"


class Lane:
    """The bytes of one connection in one direction, on their way."""

    def __init__(
        self,
        path: Path,
        source: End,
        target: End,
        *,
        max_in_flight_bytes: int,
        on_end: Callable[[Ending], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._path = path
        self._source = source
        self._target = target
        self._max_in_flight_bytes = max_in_flight_bytes
        self._on_end = on_end
        self._queue: deque[tuple[float, bytes | Ending]] = deque()
        self._in_flight_bytes = 0
        self._last_due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._blocked = False
        self._ended = False

    def not_before(self, when_s: float) -> None:
        """Let nothing arrive before `when_s` (a connection's own handshake)."""
        self._last_due_s = max(self._last_due_s, when_s)

    def send(self, data: bytes) -> None:
        now_s = self._loop.time()
        for start in range(0, len(data), SEGMENT_BYTES):
            segment = data[start : start + SEGMENT_BYTES]
            self._enqueue(self._path.arrival(now_s, len(segment)), segment)
        self._in_flight_bytes += len(data)
        if self._in_flight_bytes > self._max_in_flight_bytes:
            self._source.pause_reading()
        self._deliver()

    def end(self, ending: Ending) -> None:
        """Let `ending` follow the last byte; a second one is ignored, unless it is a reset."""
        if self._ended and ending is Ending.EOF:
            return
        self._ended = True
        self._enqueue(self._path.arrival(self._loop.time(), 0), ending)
        self._deliver()

    def block(self, blocked: bool) -> None:
        """Keep what is due while the far socket is full."""
        self._blocked = blocked
        self._deliver()

    def drop(self) -> None:
        """Discard everything on its way."""
        self._queue.clear()
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _enqueue(self, due_s: float, item: bytes | Ending) -> None:
        self._last_due_s = max(due_s, self._last_due_s)
        self._queue.append((self._last_due_s, item))

    def _deliver(self) -> None:
        horizon_s = self._loop.time() + TICK_S / 2
        due: list[bytes] = []
        while self._queue and not self._blocked and self._queue[0][0] <= horizon_s:
            item = self._queue[0][1]
            if isinstance(item, Ending) and due:
                self._write(due)  # which may block the lane, and so hold the ending up
                due = []
                continue
            self._queue.popleft()
            if isinstance(item, Ending):
                self._on_end(item)
            else:
                due.append(item)
        if due:
            self._write(due)
        self._arm()

    def _write(self, due: list[bytes]) -> None:
        self._target.write(b"".join(due))
        self._in_flight_bytes -= sum(map(len, due))
        if self._in_flight_bytes <= self._max_in_flight_bytes:
            self._source.resume_reading()

    def _arm(self) -> None:
        if self._timer is None and self._queue and not self._blocked:
            when_s = self._queue[0][0] - TICK_S / 2
            self._timer = self._loop.call_at(when_s, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._deliver()


class End(asyncio.Protocol):
    """One socket of a relayed connection; what it receives goes into the lane `outgoing`."""

    outgoing: Lane
    incoming: Lane

    def __init__(self, connected: Callable[[End], None] = lambda end: None) -> None:
        """connected: is called with this end when its socket is open."""
        self._connected = connected
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connected(self)

    def data_received(self, data: bytes) -> None:
        self.outgoing.send(data)

    def eof_received(self) -> bool:
        self.outgoing.end(Ending.EOF)
        return True  # the other direction stays open

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:  # None: we closed it
            self.outgoing.end(Ending.RESET)

    def pause_writing(self) -> None:
        self.incoming.block(True)

    def resume_writing(self) -> None:
        self.incoming.block(False)

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def write_eof(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            with suppress(OSError):  # reset by the peer, which the loop has not noticed yet
                self._transport.write_eof()

    def pause_reading(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """Close at once, so that the peer sees a reset and no orderly end."""
        if self._transport is None:
            return
        if not self._transport.is_closing():
            raw = self._transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()
