"""Cuts connections on which no request comes, for a server that waits without a limit.

granian waits for ever for the first bytes of a connection, which tell the version of HTTP,
and keeps one of HTTP/2 that only answers pings. Linux knows how many bytes have come on each
connection, and its client, so a thread asks Linux. While many connections are taken, those
without a request give way.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.system import KNOWS_CONNECTIONS, connections

FIRST_S: Final = 30.0
"""The first bytes of a connection to a verifier may take this many seconds, or it is cut."""

FIRST_CROWDED_S: Final = 3.0
"""This limit replaces FIRST_S while more than half of the allowed connections are taken. It is
several round trips of any link."""

FIRST_BYTES: Final = 24
"""A connection counts as silent until this many bytes have come: the preface of HTTP/2 (RFC
9113, 3.4) has as many, and no shorter text is a request in HTTP/1.1."""

CHECK_INTERVAL_S: Final = 1.0
"""This many seconds are between two checks of the connections. A check takes a millisecond, and
30 ms with 2,048 connections."""

Peer = tuple[str, int]
"""The address and the port of a client's end of a connection."""


class Asking:
    """An ASGI app around another one that knows which connections carry requests. Its loop's
    thread notes them, and another one asks."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._running: Counter[Peer] = Counter()
        self._idle_since: dict[Peer, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not (client := scope.get("client")):
            return await self._app(scope, receive, send)
        peer = client[0], int(client[1])  # granian's port is a text
        self._running[peer] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._idle_since[peer] = time.monotonic()
            self._running[peer] -= 1
            if not self._running[peer]:
                del self._running[peer]

    def idle_s(self, peer: Peer) -> float:
        """Return for how long a connection has been without a request; from the first time that
        this is asked if it never had one."""
        if peer in self._running:
            return 0.0
        now = time.monotonic()
        return now - self._idle_since.setdefault(peer, now)

    def keep(self, open: Collection[Peer]) -> None:
        """Forget all connections but these, which are open."""
        for gone in {*list(self._idle_since)}.difference(open):
            self._idle_since.pop(gone, None)


def cut_silent(port: int, most: int, asking: Asking | None = None) -> None:
    """Begin to cut silent connections to `port`, for as long as this process lives. Only Linux
    has the figures for this. most: limit of connections. asking: knows which are idle; None if
    the server cuts these itself."""

    def watch() -> None:
        max_silence_s, max_idle_s = FIRST_S, math.inf
        while True:
            time.sleep(CHECK_INTERVAL_S)
            with suppress(OSError):  # there is no descriptor left for the check
                count = cut_if_silent(port, max_silence_s, asking, max_idle_s)
                is_crowded = count > most // 2
                max_silence_s = FIRST_CROWDED_S if is_crowded else FIRST_S
                max_idle_s = FIRST_CROWDED_S if is_crowded else math.inf
                max_idle_s = CHECK_INTERVAL_S if count >= most else max_idle_s

    if KNOWS_CONNECTIONS:
        threading.Thread(target=watch, name="silent connections", daemon=True).start()


def cut_if_silent(
    port: int, max_silence_s: float, asking: Asking | None = None, max_idle_s: float = math.inf
) -> int:
    """Return the number of connections to `port`, and cut those silent for `max_silence_s`, or
    without a request for `max_idle_s`."""
    peers = list[Peer]()
    for connection, silent_ms, received_bytes in connections():
        with suppress(OSError):  # it is closed meanwhile
            if connection.getsockname()[1] != port:
                continue
            address, remote, *_ = connection.getpeername()
            peer = address.partition("%")[0], remote
            peers.append(peer)
            idle_s = asking.idle_s(peer) if asking else 0.0
            is_silent = received_bytes < FIRST_BYTES and silent_ms > max_silence_s * 1000
            if is_silent or idle_s > max_idle_s:
                connection.shutdown(socket.SHUT_RDWR)
    if asking:
        asking.keep(peers)
    return len(peers)
