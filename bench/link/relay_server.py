"""A link with distance: a TCP relay that adds RTT, jitter, rate and loss, without root.

`async with Link(upstream=(host, port), rtt_ms=100, jitter_ms=20) as link:` listens on
`link.port` and carries each connection to `upstream`. `python -m bench.link.relay_server` runs one alone.

Rules:
* a connection costs one round trip before its first byte moves, as TCP's handshake does;
* bytes are counted once, where they enter the link, TCP's own headers left out;
* faults are deliberate: `cut` resets every connection, `refuse` resets each one that comes.
"""

from __future__ import annotations

import asyncio
from random import Random
from types import TracebackType
from typing import Annotated, Self

import typer

from bench.link.connection import End, Ending, Lane
from bench.link.path import Conditions, Path

MAX_IN_FLIGHT_BYTES = 4 << 20
"""Per connection and direction: more than 100 Mbit/s fill at an RTT of 300 ms."""


class Connection:
    """A client's socket, an upstream socket, and a lane in each direction."""

    def __init__(self, client: End, link: Link) -> None:
        self._client, self._server = client, End()
        self._link = link
        self._arrived: set[End] = set()
        self._over = False
        limit = link.max_in_flight_bytes
        self._up = Lane(
            link.up,
            client,
            self._server,
            max_in_flight_bytes=limit,
            on_end=lambda ending: self._end(self._server, ending),
        )
        self._down = Lane(
            link.down,
            self._server,
            client,
            max_in_flight_bytes=limit,
            on_end=lambda ending: self._end(client, ending),
        )
        client.outgoing = self._server.incoming = self._up
        client.incoming = self._server.outgoing = self._down

    async def connect(self) -> None:
        """Reach upstream; the client is reset when nobody is there."""
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
        """Reset both sockets at once and forget what is on its way."""
        self._over = True
        for lane, end in ((self._up, self._server), (self._down, self._client)):
            lane.drop()
            end.reset()
        self._link.forget(self)

    def _end(self, target: End, ending: Ending) -> None:
        if ending is Ending.RESET:
            self.cut()
            return
        target.write_eof()
        self._arrived.add(target)
        if len(self._arrived) == 2:
            self._client.close()
            self._server.close()
            self._link.forget(self)


class _Client(End):
    """An accepted socket: it becomes a connection, or is reset while the link refuses."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._link.accept(self)


class Link:
    """The relay. Open it with `async with`; leaving cuts what is still connected."""

    def __init__(
        self,
        upstream: tuple[str, int],
        *,
        rtt_ms: float = 0.0,
        jitter_ms: float = 0.0,
        rate_mbit: float | None = None,
        loss: float = 0.0,
        seed: int = 0,
        host: str = "127.0.0.1",
        port: int = 0,
        max_in_flight_bytes: int = MAX_IN_FLIGHT_BYTES,
    ) -> None:
        self.upstream = upstream
        self.conditions = Conditions(rtt_ms, jitter_ms, rate_mbit, loss)
        self.up = Path(self.conditions, Random(f"{seed} up"))
        self.down = Path(self.conditions, Random(f"{seed} down"))
        self.host, self.port = host, port
        self.max_in_flight_bytes = max_in_flight_bytes
        self._connections: set[Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._tasks = asyncio.TaskGroup()
        self._refusing = False
        self._server: asyncio.Server | None = None

    @property
    def bytes_up(self) -> int:
        return self.up.bytes

    @property
    def bytes_down(self) -> int:
        return self.down.bytes

    @property
    def connections(self) -> int:
        """How many are open now."""
        return len(self._connections)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Client(self), self.host, self.port)
        await self._tasks.__aenter__()
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in self._connecting:
            task.cancel()
        await self._tasks.__aexit__(kind, error, trace)
        await asyncio.sleep(0)  # the sockets close in the loop's next turn

    def change(self, conditions: Conditions) -> None:
        """Be like this from now on; what is on its way arrives as it would have."""
        self.conditions = self.up.conditions = self.down.conditions = conditions

    def cut(self) -> None:
        """Reset every connection at once; later ones are carried as before."""
        for connection in list(self._connections):
            connection.cut()

    def refuse(self, refusing: bool) -> None:
        """While true, reset each connection as it is made; open ones go on."""
        self._refusing = refusing

    def accept(self, client: End) -> None:
        """Take a client's socket in; called by the socket itself."""
        if self._refusing:
            client.reset()
            return
        client.pause_reading()
        connection = Connection(client, self)
        self._connections.add(connection)
        task = self._tasks.create_task(connection.connect())
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def forget(self, connection: Connection) -> None:
        """The connection is over; called by the connection itself."""
        self._connections.discard(connection)


def main(
    upstream: Annotated[str, typer.Option(help="HOST:PORT to carry connections to.")],
    rtt: Annotated[float, typer.Option(help="Round-trip time, ms.")] = 0.0,
    jitter: Annotated[float, typer.Option(help="The RTT varies by so much, ms.")] = 0.0,
    rate: Annotated[float | None, typer.Option(help="Mbit/s in each direction.")] = None,
    loss: Annotated[float, typer.Option(help="Probability that a segment is lost.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of jitter and loss.")] = 0,
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 0,
) -> None:
    """Carry TCP connections over an emulated link until interrupted."""
    host, _, upstream_port = upstream.rpartition(":")

    async def run() -> None:
        link = Link(
            (host, int(upstream_port)),
            rtt_ms=rtt,
            jitter_ms=jitter,
            rate_mbit=rate,
            loss=loss,
            seed=seed,
            port=port,
        )
        async with link:
            typer.echo(f"127.0.0.1:{link.port} -> {upstream}, RTT {rtt:g} +- {jitter:g} ms")
            await asyncio.Event().wait()

    asyncio.run(run())


if __name__ == "__main__":
    typer.run(main)
