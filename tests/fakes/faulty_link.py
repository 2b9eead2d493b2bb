"""The product's emulated link, which can also be cut, go silent, and tell what passes."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import Collection
from random import Random

from bench.link import Conditions, EmulatedLink, Path
from picospec.link import HOST, EmulatedConnection, reset


class WatchedPath(Path):
    """It notes when bytes entered, and how many."""

    def __init__(self) -> None:
        super().__init__(Conditions(), Random(7))
        self.passed: list[tuple[float, int]] = []

    def arrival(self, now_s: float, size_bytes: int) -> float:
        self.passed.append((now_s, size_bytes))
        return super().arrival(now_s, size_bytes)


class FaultyLink(EmulatedLink):
    """Open it with `async with`; it leads to a port of this machine."""

    def __init__(self, port: int) -> None:
        super().__init__((HOST, port))
        self.up: WatchedPath = WatchedPath()
        self._refuses = False
        self._silent = False

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        if self._refuses:
            return reset(writer)
        before = set(self.connections)
        super().accept(reader, writer)
        if self._silent:
            self._stall(True, before)

    async def refuse(self, for_s: float) -> None:
        """Reset all connections, and new ones for so long."""
        self._refuses = True
        self.cut()
        await asyncio.sleep(for_s)
        self._refuses = False

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
        self._refuses = self._silent = False
        self.change(Conditions())
        self.up.passed.clear()

    def sent_up_at(self, after_s: float, least_bytes: int) -> float | None:
        """Return when so many bytes first went up at once, after a time of the loop's clock."""
        found = (at for at, size in self.up.passed if at > after_s and size >= least_bytes)
        return next(found, None)

    def _stall(self, stalled: bool, without: Collection[EmulatedConnection] = ()) -> None:
        for connection in self.connections.difference(without):
            connection.stall(stalled)
