"""A TCP relay whose connections can be cut, or left open and dead, as behind a broken NAT."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Relay:
    def __init__(self, port: int) -> None:
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.connections = 0
        self.refuses = False

    def leads_to(self, port: int) -> None:
        """Have later connections go to another port."""
        self._port = port

    def freeze(self) -> None:
        """Let no byte through on the connections that there are; later ones work."""
        for task in self._tasks:
            task.cancel()

    def cut(self) -> None:
        """Close the connections that there are."""
        self.freeze()
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            writer.close()
            return
        self.connections += 1
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, up_writer}
        for source, sink in ((reader, up_writer), (up_reader, writer)):
            task = asyncio.create_task(_pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        sink.close()


@asynccontextmanager
async def relaying(url: str) -> AsyncIterator[tuple[Relay, str]]:
    """Yield a relay to the port of a URL, and the URL of the relay."""
    relay = Relay(int(url.rsplit(":", 1)[1]))
    server = await asyncio.start_server(relay.serve, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    try:
        yield relay, f"http://127.0.0.1:{port}"
    finally:
        server.close()
        relay.cut()
        await asyncio.sleep(0.05)
