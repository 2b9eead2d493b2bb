"""A connection that carries nothing is replaced by each request that it fails."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from picospec.edge_agent.link.connection import Answer, Connection, LinkDown
from picospec.edge_agent.link.uplink import Uplink
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.gateway.errors import Draining

SETTINGS = b"\0\0\0\4\0\0\0\0\0"


async def test_every_request_without_an_answer_is_followed_by_one_elsewhere() -> None:
    connected = list[asyncio.StreamWriter]()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append(writer)
        writer.write(SETTINGS)
        with suppress(OSError):
            await reader.read()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        connection = Connection(f"http://127.0.0.1:{port}", key=None, ca_certificate=None)
        counts = []
        for _ in range(4):
            with pytest.raises(LinkDown):
                await connection.ask("POST", "/", within_s=0.3)
            counts.append(len(connected))
        for writer in connected:
            writer.close()

    assert counts == [1, 2, 3, 4]


class Drained(Connection):
    """Every answer is that the verifier drains; `made` counts the clients."""

    made = 0

    async def ask(self, *_: object, **__: object) -> Answer:
        if self.client is None:
            self.made += 1
        self._made()
        return Answer(503, b'{"error":{"message":"bye","code":"draining"}}')


async def test_every_answer_that_it_drains_is_followed_by_a_request_elsewhere(
    metrics: EdgeMetrics,
) -> None:
    connection = Drained("http://127.0.0.1:9", key=None, ca_certificate=None)
    uplink = Uplink(connection, metrics)

    for expected in range(3):
        with pytest.raises(Draining):
            await uplink.check()
        assert connection.made == expected
