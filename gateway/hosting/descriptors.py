"""File descriptors: as many as the system allows, and some of them never for clients.

A connection takes one. So do the link to a verifier, a model's files and the start of a
process; without them running answers would be lost.
"""

from __future__ import annotations

import asyncio
import errno
import resource
from contextlib import suppress
from typing import Any, Final

import structlog

from picospec.gateway.log_lines import LogLimit

MOST: Final = 65_536
"""The limit that is asked for. Shells and systemd give 1,024 and allow far more. With more than
this a process takes long to start others, because it closes all descriptors for them."""

RESERVED: Final = 1024
"""So many descriptors are kept for what is no counted connection. An edge needs about 40, and
three for each trial of a grammar; a verifier about 30, and vLLM's service about 200. The rest
is for connections that were accepted and are yet to be counted."""

MAX_CONNECTIONS: Final = 8192
"""An edge has one connection to each verifier, and a client of HTTP/1.1 one for each answer.
The rest is room for strangers, whose silent connections are noticed once a second."""

MAX_ACCEPTED: Final = 512
"""So many connections are accepted in one go, before the server can cut others for them."""

_NONE_LEFT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def raise_limit() -> int:
    """Raise this process's limit, which its children inherit, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    with suppress(OSError, ValueError):  # macOS has another limit besides
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            return most
    return MOST if soft == resource.RLIM_INFINITY else soft


def max_connections(limit: int) -> int:
    """Return how many connections there may be: of a low limit, half."""
    return min(MAX_CONNECTIONS, max(limit - RESERVED, limit // 2))


def max_accepted(limit: int) -> int:
    """Return how many connections may be accepted in one go: of a low limit, an eighth."""
    return max(1, min(MAX_ACCEPTED, limit // 8))


def be_brief_without_descriptors(loop: asyncio.AbstractEventLoop) -> None:
    """Have a loop that can accept no connection say so once a minute. By itself it logs a
    traceback for each of those that wait, every second."""
    lines = LogLimit()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in _NONE_LEFT:
            return loop.default_exception_handler(context)
        if count := lines.count(loop.time()):
            structlog.get_logger("service").error(
                "no connection can be accepted", reason=str(error), failures=count
            )

    loop.set_exception_handler(handle)
