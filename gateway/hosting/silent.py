"""Cuts connections on which no request comes, for a server that waits without a limit.

granian waits for ever for the first bytes of a connection, which tell the version of HTTP.
Linux knows how many bytes have come on each connection, so a thread asks Linux.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from typing import Final

FIRST_S: Final = 30.0
"""The first bytes of a connection may take this many seconds: as many as the edge allows."""

FIRST_CROWDED_S: Final = 3.0
"""This limit replaces FIRST_S while more than half of the allowed connections are taken. It is
several round trips of any link."""

FIRST_BYTES: Final = 24
"""A connection counts as silent until this many bytes have come: the preface of HTTP/2 (RFC
9113, 3.4) has as many, and no shorter text is a request in HTTP/1.1."""

CHECK_INTERVAL_S: Final = 1.0
"""This many seconds are between two checks of the connections. A check takes a millisecond, and
30 ms with 2,048 connections."""

_INFO: Final = struct.Struct("@B51xI72xQ")
"""Reads tcp_info of linux/tcp.h: tcpi_state, tcpi_last_data_recv (ms), tcpi_bytes_received."""

_ESTABLISHED: Final = 1


def cut_silent(port: int, most: int) -> None:
    """Begin to cut silent connections to `port`, for as long as this process lives. Only Linux
    has the figures for this. most: limit of connections."""

    def watch() -> None:
        max_silence_s = FIRST_S
        while True:
            time.sleep(CHECK_INTERVAL_S)
            with suppress(OSError):  # there is no descriptor left for the check
                is_crowded = cut_if_silent(port, max_silence_s) > most // 2
                max_silence_s = FIRST_CROWDED_S if is_crowded else FIRST_S

    if sys.platform == "linux":
        threading.Thread(target=watch, name="silent connections", daemon=True).start()


def cut_if_silent(port: int, max_silence_s: float) -> int:
    """Return the number of connections to `port`, and cut those silent for `max_silence_s`."""
    count = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError), _duplicate(int(descriptor)) as connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
            state, silent_ms, received_bytes = _INFO.unpack(info)
            if state != _ESTABLISHED or connection.getsockname()[1] != port:
                continue
            count += 1
            if received_bytes < FIRST_BYTES and silent_ms > max_silence_s * 1000:
                connection.shutdown(socket.SHUT_RDWR)
    return count


def _duplicate(descriptor: int) -> socket.socket:
    """Return a socket with a descriptor of its own, because the server may close its descriptor
    meanwhile and the number be reused. Raises OSError if the descriptor is not a socket."""
    duplicate = os.dup(descriptor)
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, duplicate)
    except OSError:
        os.close(duplicate)
        raise
