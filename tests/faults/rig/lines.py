"""Connections of HTTP/1.1 that take little of the processor, for loads."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

ANSWERED_WITHIN_S: Final = 120.0


@dataclass
class Line:
    """A connection that is made when it is used, and again when it was closed."""

    port: int
    tally: Counter[str]
    """How often each status, or error, came."""

    key: str = ""
    writer: asyncio.StreamWriter | None = None
    reader: asyncio.StreamReader = field(default_factory=asyncio.StreamReader)

    async def connect(self) -> asyncio.StreamWriter:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self.writer

    async def send(self, method: str, path: str, body: bytes = b"") -> None:
        """Send a request, and count the status of its answer."""
        try:
            async with asyncio.timeout(ANSWERED_WITHIN_S):
                self.tally[await self._send(method, path, body)] += 1
        except (OSError, EOFError) as error:
            self.tally[type(error).__name__] += 1
            await self.close()

    async def _send(self, method: str, path: str, body: bytes) -> str:
        writer = self.writer or await self.connect()
        fields = f"content-length: {len(body)}\r\ncontent-type: application/json\r\n"
        if self.key:
            fields += f"authorization: Bearer {self.key}\r\n"
        head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{fields}\r\n"
        with suppress(ConnectionError):  # it may be answered before all is sent
            writer.write(head.encode() + body)
            await writer.drain()
        status, _ = await self.read()
        return status

    async def read(self) -> tuple[str, bytes]:
        """Return the status and the body of the next answer. A stream is left at its first
        bytes, and stays open."""
        answer = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        found = dict(each.split(b": ", 1) for each in answer.split(b"\r\n")[1:-2])
        body = await self.reader.readexactly(int(found.get(b"content-length", 0)))
        if found.get(b"connection") == b"close":
            await self.close()
        return answer.split(b" ", 2)[1].decode(), body

    async def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            with suppress(OSError):
                await self.writer.wait_closed()
            self.writer = None


@asynccontextmanager
async def lines(
    port: int, count: int, tally: Counter[str], key: str = ""
) -> AsyncIterator[list[Line]]:
    """Give connections that are closed in the end."""
    async with AsyncExitStack() as stack:
        given = [Line(port, tally, key) for _ in range(count)]
        for line in given:
            stack.push_async_callback(line.close)
        yield given
