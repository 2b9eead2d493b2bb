"""How long the link tries again.

A host that refuses connections has no verifier any more: that is given up soon. A host that
cannot be reached may come back within the session's resume window.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final

import httpx
import stamina

from edge_agent.link.upstream_errors import refused
from gateway.errors import Unavailable

REFUSED_FOR_S: Final = 1.25
"""A client must hear within 2 s that its verifier died; a proxy restarts within one."""

REFUSED_WAIT_S: Final = 0.2


def attempts(window_s: float, clock: Callable[[], float]) -> AsyncIterator[stamina.Attempt]:
    """Yield attempts until one succeeds, or trying again is of no use; that error is raised.

    Tried again: failures of the transport, and answers that mean a verifier not ready.
    """
    begun = clock()

    def worth(error: Exception) -> bool | float:
        if refused(error):
            return REFUSED_WAIT_S if clock() - begun < REFUSED_FOR_S else False
        return isinstance(error, httpx.TransportError | Unavailable)

    return stamina.retry_context(
        on=worth,
        attempts=None,
        timeout=window_s,
        wait_initial=0.05,
        wait_max=1.0,
        wait_jitter=0.05,
    )
