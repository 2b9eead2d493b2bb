"""How requests reach a service: by which paths and names, and what is open to anybody."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from starlette.types import Scope

from picospec.gateway.accounts.account import Clock
from picospec.gateway.log_lines import shown
from picospec.gateway.tracing import NO_TRACING, Tracing

PAGE_PATHS: Final = "/page/"
"""The paths of the page's files begin with this."""

HEALTH_PATHS: Final = ("/health", "/v1/health", "/ping")
"""The paths that answer whether a process is alive: vLLM's, and llama-server's."""

_OPEN_PATHS: Final = frozenset(
    {"/", *HEALTH_PATHS, "/ready", "/metrics", "/openapi.json", "/docs"}
)

IsMessage = Callable[[str], bool]
"""Tells whether a path takes messages of a request that runs already. A message is no request
of its own: it is neither logged nor counted, unless it fails. Even then a 404 is not logged: a
message that is on its way when the request ends gets one."""


@dataclass(frozen=True, slots=True)
class Access:
    """How requests reach one service."""

    session_paths: str | None = None
    """The paths that are followed by a session's name begin with this."""

    is_message: IsMessage = lambda _: False
    hosts: Collection[str] | None = None
    """The names in `Host` that are answered; None for any."""

    body_limit_bytes: Callable[[Scope], int | None] = lambda _: None
    """Returns the limit of a request's body; None for the settings'."""

    clock: Clock = time.monotonic
    tracing: Tracing = NO_TRACING

    def shown(self, path: str) -> str:
        """Return a path as others may see it: without a session's name, which is a secret."""
        prefix = self.session_paths
        if prefix is None or not path.startswith(prefix):
            return shown(path)
        _, slash, rest = path.removeprefix(prefix).partition("/")
        return shown(f"{prefix}*{slash}{rest}")


def is_open(path: str) -> bool:
    """Whether anybody may ask for a path, without a key."""
    return path in _OPEN_PATHS or path.startswith(PAGE_PATHS)
