"""A client of HTTP/1.1 on a bare socket, which can do what a well-made client never does."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Self

from tests.faults.rig.asking import MODEL
from tests.local_models.chats import Json

PATH = "/v1/chat/completions"


def request(body: Json, path: str = PATH) -> bytes:
    content = json.dumps({"model": MODEL, **body}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n%b" % (len(content), content)


class RawClient:
    """One connection. Open it with `async with`; leaving resets it.

    room_bytes: how much the system takes in before this client reads it.
    """

    def __init__(self, port: int, room_bytes: int | None = None) -> None:
        self._port = port
        self._room_bytes = room_bytes

    async def __aenter__(self) -> Self:
        self._socket = socket.socket()
        if self._room_bytes:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._room_bytes)
        self._socket.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, ("127.0.0.1", self._port))
        return self

    async def __aexit__(self, *error: object) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def read(self, until: bytes, max_bytes: int = 65536) -> bytes:
        """Return what comes up to some bytes, or to the end of the connection."""
        loop, found = asyncio.get_running_loop(), b""
        while until not in found:
            data = await loop.sock_recv(self._socket, max_bytes)
            if not data:
                break
            found += data
        return found
