"""The product's emulated link, which can also be cut and go silent."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import Collection

from bench.link import Conditions, EmulatedLink
from picospec.link import HOST, EmulatedConnection


class FaultyLink(EmulatedLink):
    """Open it with `async with`; it leads to a port of this machine."""

    def __init__(self, port: int) -> None:
        super().__init__((HOST, port))
        self._silent = False

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        before = set(self.connections)
        super().accept(reader, writer)
        if self._silent:
            self._stall(True, before)

    async def silence(self, for_s: float) -> None:
        """Deliver nothing for so long, as over a radio link without reception."""
        self.fall_silent()
        await asyncio.sleep(for_s)
        self.fall_silent(False)

    def fall_silent(self, is_silent: bool = True) -> None:
        self._silent = is_silent
        self._stall(is_silent)

    def close_port(self) -> None:
        """Refuse connections, as a host does where no process listens."""
        if self._server is not None:
            self._server.close()

    def half_open(self) -> None:
        """Never deliver anything on the connections that there are; others work."""
        self._stall(True)

    def heal(self) -> None:
        """Be a link without faults, for later connections too."""
        self._silent = False
        self.change(Conditions())

    def _stall(self, stalled: bool, without: Collection[EmulatedConnection] = ()) -> None:
        for connection in self.connections.difference(without):
            connection.stall(stalled)
