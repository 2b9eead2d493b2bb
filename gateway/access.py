"""Defines by which paths and host names requests reach a service, and which paths are open."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from starlette.types import Scope

from gateway.log_limits import shown
from gateway.request_context import Clock
from gateway.tracing import NO_TRACING, Tracing

PAGE_PATHS: Final = "/page/"
"""The paths of the page's files begin with this."""

HEALTH_PATHS: Final = ("/health", "/v1/health", "/ping")
"""A process that is alive answers these paths, which are vLLM's and llama-server's."""

_OPEN_PATHS: Final = frozenset(
    {"/", *HEALTH_PATHS, "/ready", "/metrics", "/openapi.json", "/docs"}
)

IsMessage = Callable[[str], bool]
"""Returns True if a path takes protocol messages of a session. They are not requests of their
own: they are neither logged nor counted, unless they fail. Even then a 404 is not logged: a
message that is on its way when the session ends gets a 404."""


@dataclass(frozen=True, slots=True)
class Access:
    """Defines how requests reach one service."""

    session_paths: str | None = None
    """A path that contains a session's name begins with this, followed by the name."""

    is_message: IsMessage = lambda _: False
    hosts: Collection[str] | None = None
    """Requests with one of these names in `Host` are answered; None: with any name."""

    body_limit_bytes: Callable[[Scope], int | None] = lambda _: None
    """Returns the limit of a request's body; None means the limit in the settings."""

    clock: Clock = field(default_factory=lambda: time.monotonic)
    tracing: Tracing = NO_TRACING

    def shown(self, path: str) -> str:
        """Return a path in its form for logs: without a session's name, which is a secret."""
        prefix = self.session_paths
        if prefix is None or not path.startswith(prefix):
            return shown(path)
        _, slash, rest = path.removeprefix(prefix).partition("/")
        return shown(f"{prefix}*{slash}{rest}")


def is_open(path: str) -> bool:
    """Return True if a path needs no key."""
    return path in _OPEN_PATHS or path.startswith(PAGE_PATHS)
