"""Relays TCP with an added round-trip time, and needs no root.

`async with Link((host, port), rtt_s=0.1) as link:` listens on `link.port` and
forwards each connection to that host and port.

* A connection costs one round trip before its first byte moves, as TCP's handshake does.
* Data leaves a lane at the time that its path computes, and never before earlier data.
* Bytes are counted once, where they enter the link, without TCP's own headers.
* An end in one direction leaves the other open (half-close); a reset ends both.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, Self
from weakref import WeakSet

HOST = "127.0.0.1"

MAX_IN_FLIGHT_BYTES = 4 << 20
"""A direction of a connection holds at most this many bytes; the relay does not read its sender
beyond that. 100 Mbit/s over an RTT of 300 ms fill less."""

TICK_S = 0.001
"""The event loop's timers have this resolution. Data is sent up to half of it early, so that
the error is symmetric."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class _Reset(Exception):
    """A reset has arrived at the far end."""


class Way(Protocol):
    """A Way is one direction of the link; all connections share it."""

    def arrivals(self, now_s: float, data: bytes) -> Iterable[tuple[float, bytes]]:
        """Return the parts of data that is sent at `now_s`, each with its time of arrival."""


@dataclass(frozen=True, slots=True)
class Delay:
    """A Way that takes the same time for any data."""

    delay_s: float

    def arrivals(self, now_s: float, data: bytes) -> Iterable[tuple[float, bytes]]:
        """Return all data at once."""
        return [(now_s + self.delay_s, data)]


class Lane:
    """A Lane carries the bytes of one connection in one direction."""

    def __init__(self, way: Way, max_in_flight_bytes: int) -> None:
        self.open = asyncio.Event()
        """Nothing arrives while this is not set."""

        self.open.set()
        self._way = way
        self._max_in_flight_bytes = max_in_flight_bytes
        self._in_flight_bytes = 0
        self._has_room = asyncio.Event()
        self._queue = asyncio.Queue[tuple[float, bytes | None]]()
        """Holds data with its time of arrival; b"" is an end, and None a reset."""

    async def take_in(self, source: StreamReader, due_s: float) -> None:
        """Send the data of a source, and its end or reset; nothing arrives before `due_s`."""
        loop = asyncio.get_running_loop()
        ending: bytes | None = b""
        try:
            while data := await source.read(1 << 16):
                for at_s, part in self._way.arrivals(loop.time(), data):
                    due_s = max(due_s, at_s)
                    self._queue.put_nowait((due_s, part))
                self._count(len(data))
                await self._has_room.wait()
        except OSError:
            ending = None
        for at_s, _ in self._way.arrivals(loop.time(), b""):
            self._queue.put_nowait((max(due_s, at_s), ending))

    async def let_out(self, target: StreamWriter) -> None:
        """Write data when it is due, until the end has arrived. Raises _Reset for a reset."""
        loop = asyncio.get_running_loop()
        with suppress(OSError):  # the target was reset, which its own lane will notice
            while True:
                due_s, data = await self._queue.get()
                if (left_s := due_s - TICK_S / 2 - loop.time()) > 0:
                    await asyncio.sleep(left_s)
                await self.open.wait()
                if data is None:
                    raise _Reset
                if not data:
                    return target.write_eof()
                target.write(data)
                await target.drain()
                self._count(-len(data))

    def _count(self, more_bytes: int) -> None:
        self._in_flight_bytes += more_bytes
        if self._in_flight_bytes > self._max_in_flight_bytes:
            self._has_room.clear()
        else:
            self._has_room.set()


class EmulatedConnection:
    """A Connection joins a client's and an upstream socket by a lane in each direction."""

    def __init__(self, reader: StreamReader, writer: StreamWriter, link: Link) -> None:
        self._reader = reader
        self._writers = [writer]
        self._link = link
        self._lanes = [Lane(way, link.max_in_flight_bytes) for way in (link.up, link.down)]
        self._carrying = link.tasks.create_task(self._carry())

    async def _carry(self) -> None:
        """Connect to the upstream service, and forward what both ends send. Reset the client if
        nothing listens there."""
        now_s, rtt_s = asyncio.get_running_loop().time(), self._link.rtt_s
        try:
            reader, writer = await asyncio.open_connection(*self._link.upstream)
        except OSError:
            await asyncio.sleep(rtt_s)
            return self._end(reset)
        self._writers.append(writer)
        (up, down), client = self._lanes, self._writers[0]
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(up.take_in(self._reader, now_s + 1.5 * rtt_s))
                tasks.create_task(up.let_out(writer))
                tasks.create_task(down.take_in(reader, now_s + 2 * rtt_s))
                tasks.create_task(down.let_out(client))
        except* _Reset:
            self._end(reset)
        else:
            self._end(StreamWriter.close)

    def cut(self) -> None:
        """Reset both sockets at once and drop the data in transit."""
        self._carrying.cancel()
        self._end(reset)

    def stall(self, stalled: bool) -> None:
        """Stop arrivals at both ends, like a line that is down; what was sent arrives when it
        is up again."""
        for lane in self._lanes:
            lane.open.clear() if stalled else lane.open.set()

    def _end(self, close: Callable[[StreamWriter], None]) -> None:
        for writer in self._writers:
            close(writer)
        self._link.connections.discard(self)


def reset(writer: StreamWriter) -> None:
    """Close a socket at once, so that the peer sees a reset instead of an orderly end."""
    if not writer.transport.is_closing():
        raw = writer.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()


class Link:
    """The relay is opened with `async with`; leaving it resets the remaining connections."""

    def __init__(
        self,
        upstream: tuple[str, int],
        rtt_s: float = 0.0,
        max_in_flight_bytes: int = MAX_IN_FLIGHT_BYTES,
    ) -> None:
        self.upstream = upstream
        self.rtt_s = rtt_s
        self.up: Way = Delay(rtt_s / 2)
        self.down: Way = Delay(rtt_s / 2)
        self.port = 0
        self.max_in_flight_bytes = max_in_flight_bytes
        self.connections: set[EmulatedConnection] = set()
        self.tasks = asyncio.TaskGroup()
        self._clients: WeakSet[StreamWriter] = WeakSet()
        """These are the clients' sockets, including those of finished connections that are not
        read to the end."""

        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.tasks.__aenter__()
        await self.listen()
        return self

    async def listen(self) -> None:
        """Open the port: any free one at first, and the same one again later."""
        self._server = await asyncio.start_server(self.accept, HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def __aexit__(self, *error: object) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        await self.tasks.__aexit__(None, None, None)
        for _ in range(3):  # loop turns in which pending clients are accepted and sockets close
            for client in list(self._clients):
                reset(client)
            await asyncio.sleep(0)

    def cut(self) -> None:
        """Reset every connection at once. Later connections work as before."""
        for connection in list(self.connections):
            connection.cut()

    def accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Forward a client's socket upstream; called when it has connected."""
        self._clients.add(writer)
        if self._server is None or not self._server.is_serving():  # the port was just closed
            return reset(writer)
        self.connections.add(EmulatedConnection(reader, writer, self))
