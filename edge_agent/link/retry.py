"""How the link tries again: soon, then less often, and never at the same moment as others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

import httpx
import stamina

from edge_agent.link.upstream_errors import is_connection_refused
from gateway.errors import Unavailable

REFUSED_WAIT_S: Final = 0.2
"""Time between two attempts at a refused connection: it costs nothing to find that out, and the
process may be back at any time."""


@dataclass(frozen=True, slots=True)
class Retries:
    """How long a link holds on to its verifier."""

    elsewhere: Callable[[], bool] = lambda: False
    """Returns whether another verifier could take over now."""

    within_s: float = 30.0
    """How long a lost stream is resumed where none can."""


def attempts(
    within_s: float, goes_on: Callable[[Exception], bool] = lambda _: True
) -> AsyncIterator[stamina.Attempt]:
    """Yield attempts, or one if within_s is 0, until one succeeds, or another would be useless; then raise its error.

    Failures of the transport are tried again, and answers that mean a verifier not ready, as
    long as `goes_on` returns True for them.
    """

    def is_worth_retrying(error: Exception) -> bool | float:
        if not isinstance(error, httpx.TransportError | Unavailable) or not goes_on(error):
            return False
        return REFUSED_WAIT_S if is_connection_refused(error) else True

    return stamina.retry_context(
        on=is_worth_retrying,
        attempts=None if within_s else 1,
        timeout=within_s or None,
        wait_initial=0.05,
        wait_max=1.0,
        wait_jitter=0.05,
    )
