"""Raises the limit of file descriptors, and reserves some that clients never get.

A connection takes one descriptor. The link to a verifier, a model's files and the start of a
process need some too; without these descriptors running answers would be lost.
"""

from __future__ import annotations

import asyncio
import errno
from contextlib import suppress
from typing import Any, Final

import structlog

from gateway.log_limits import LogLimit
from gateway.system import descriptors, raise_descriptors

MAX_DESCRIPTORS: Final = 65_536
"""The limit is raised to this. Shells and systemd give 1,024 and allow far more. With a higher
limit a process takes long to start others, because it closes all descriptors for them."""

RESERVED: Final = 1024
"""This many descriptors are reserved for uses other than counted connections. An edge needs 40,
and three for each trial of a grammar; a verifier 30, and vLLM's service about 200. The rest is
for accepted connections that are not counted yet."""

MAX_CONNECTIONS: Final = 8192
"""A service has at most this many connections. An edge has one to each verifier, and a client
of HTTP/1.1 one for each answer. The rest is for strangers' silent connections. Beyond it, an
edge cuts the one that was silent longest; at a verifier new ones wait."""

MAX_ACCEPTED: Final = 512
"""At most this many connections are accepted in one go, before the server can cut others."""

_NONE_LEFT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def raise_limit() -> int:
    """Raise this process's limit, which its children inherit, and return it."""
    soft, hard = descriptors(MAX_DESCRIPTORS)
    with suppress(OSError, ValueError):  # macOS has a second limit
        if soft < hard:
            raise_descriptors(hard)
            return hard
    return soft


def max_connections(limit: int) -> int:
    """Return how many connections are allowed: half of a low limit of descriptors."""
    return min(MAX_CONNECTIONS, max(limit - RESERVED, limit // 2))


def allowed_connections() -> int:
    """Return how many connections this process is allowed, by its present limit."""
    soft, _ = descriptors(MAX_DESCRIPTORS)
    return max_connections(soft)


def max_accepted(limit: int) -> int:
    """Return how many connections may be accepted in one go: an eighth of a low limit."""
    return max(1, min(MAX_ACCEPTED, limit // 8))


def limit_accept_error_logs(loop: asyncio.AbstractEventLoop) -> None:
    """Make a loop that cannot accept connections log this once a minute. Without this, the loop
    logs a traceback for each waiting connection every second."""
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
