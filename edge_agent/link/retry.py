"""How long the link tries again.

Where a host refuses connections, the verifier's process is gone, and the link gives up soon. A
host that cannot be reached may come back within the session's resume window.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Final

import httpx
import stamina

from edge_agent.link.upstream_errors import is_connection_refused
from gateway.errors import Unavailable

REFUSED_FOR_S: Final = 1.25
"""Time for which refused connections are tried again. A client must get an error within 2 s of
its verifier's death; a proxy in front of the verifier restarts within 1 s."""

REFUSED_WAIT_S: Final = 0.2
"""Time between two attempts at a refused connection."""


def attempts(window_s: float) -> AsyncIterator[stamina.Attempt]:
    """Yield attempts until one succeeds, or another would be useless; then raise its error.

    Failures of the transport are tried again, and answers that mean a verifier not ready.
    """
    begun = time.monotonic()

    def is_worth_retrying(error: Exception) -> bool | float:
        if is_connection_refused(error):
            return REFUSED_WAIT_S if time.monotonic() - begun < REFUSED_FOR_S else False
        return isinstance(error, httpx.TransportError | Unavailable)

    return stamina.retry_context(
        on=is_worth_retrying,
        attempts=None,
        timeout=window_s,
        wait_initial=0.05,
        wait_max=1.0,
        wait_jitter=0.05,
    )
