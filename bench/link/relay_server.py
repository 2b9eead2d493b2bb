"""A TCP relay that adds round-trip time, jitter, a rate and losses, and needs no root.

`async with Link((host, port), Conditions(rtt_ms=100)) as link:` listens on `link.port` and
carries each connection to that host and port.

* A connection costs one round trip before its first byte moves, as TCP's handshake does.
* Bytes are counted once, where they enter the link, without TCP's own headers.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import Self
from weakref import WeakSet

from picospec.bench.link.connection import End, Ending, Lane
from picospec.bench.link.path import Conditions, Path

HOST = "127.0.0.1"

MAX_IN_FLIGHT_BYTES = 4 << 20
"""A direction of a connection holds no more: 100 Mbit/s over an RTT of 300 ms fill less."""


class Connection:
    """A client's socket, an upstream socket, and a lane in each direction."""

    def __init__(self, client: End, link: Link) -> None:
        self._client, self._server = client, End()
        self._link = link
        self._arrived: set[End] = set()
        self._over = False
        self._up = self._lane(link.up, client, self._server)
        self._down = self._lane(link.down, self._server, client)
        client.outgoing = self._server.incoming = self._up
        client.incoming = self._server.outgoing = self._down

    def _lane(self, path: Path, source: End, target: End) -> Lane:
        return Lane(
            path, source, target,
            max_in_flight_bytes=self._link.max_in_flight_bytes,
            on_end=lambda ending: self._end(target, ending),
        )  # fmt: skip

    async def connect(self) -> None:
        """Connect to the upstream service; reset the client when nothing listens there."""
        loop = asyncio.get_running_loop()
        rtt_s = self._link.conditions.rtt_s
        self._up.not_before(loop.time() + rtt_s * 1.5)
        self._down.not_before(loop.time() + rtt_s * 2)
        try:
            await loop.create_connection(lambda: self._server, *self._link.upstream)
        except OSError:
            await asyncio.sleep(rtt_s)
            self.cut()
            return
        if self._over:  # cut while connecting
            self._server.reset()
        else:
            self._client.resume_reading()

    def cut(self) -> None:
        """Reset both sockets at once and drop what is on its way."""
        self._over = True
        for lane, end in ((self._up, self._server), (self._down, self._client)):
            lane.drop()
            end.reset()
        self._link.connections.discard(self)

    def stall(self, stalled: bool) -> None:
        """Let nothing arrive at either end, as over a line that is down; what was sent arrives
        when it is up again."""
        for lane in (self._up, self._down):
            lane.block(stalled)

    def _end(self, target: End, ending: Ending) -> None:
        if ending is Ending.RESET:
            self.cut()
            return
        target.write_eof()
        self._arrived.add(target)
        if len(self._arrived) == 2:
            self._client.close()
            self._server.close()
            self._link.connections.discard(self)


class Link:
    """The relay. Open it with `async with`; leaving cuts what is still connected."""

    def __init__(
        self,
        upstream: tuple[str, int],
        conditions: Conditions = Conditions(),  # noqa: B008 - frozen
        *,
        seed: int = 0,
        max_in_flight_bytes: int = MAX_IN_FLIGHT_BYTES,
    ) -> None:
        self.upstream = upstream
        self.conditions = conditions
        self.up = Path(self.conditions, Random(f"{seed} up"))
        self.down = Path(self.conditions, Random(f"{seed} down"))
        self.port = 0
        self.max_in_flight_bytes = max_in_flight_bytes
        self.connections: set[Connection] = set()
        self._ends: WeakSet[End] = WeakSet()
        """It has the clients' sockets, also of connections that are over but not read to the
        end."""

        self._connecting: set[asyncio.Task[None]] = set()
        self._tasks = asyncio.TaskGroup()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: End(self.accept), HOST, 0)
        await self._tasks.__aenter__()
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in self._connecting:
            task.cancel()
        await self._tasks.__aexit__(None, None, None)
        for _ in range(3):  # turns of the loop: some are still accepted, and sockets close
            for end in list(self._ends):
                end.reset()
            await asyncio.sleep(0)

    def change(self, conditions: Conditions) -> None:
        """Change the conditions; what is already on its way arrives as it would have."""
        self.conditions = self.up.conditions = self.down.conditions = conditions

    def cut(self) -> None:
        """Reset every connection at once; later ones are carried as before."""
        for connection in list(self.connections):
            connection.cut()

    def accept(self, client: End) -> None:
        """Carry a client's socket upstream; called when it is connected."""
        self._ends.add(client)
        if self._server is None or not self._server.is_serving():  # it came as the port closed
            client.reset()
            return
        client.pause_reading()
        connection = Connection(client, self)
        self.connections.add(connection)
        task = self._tasks.create_task(connection.connect())
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
