"""How the link tries again: soon, then less often, and never at the same moment as others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

import httpx
import stamina

from gateway.errors import Unavailable

MAX_WAIT_S: Final = 0.5
"""Longest wait between two attempts, so that a link that is back is found soon."""


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
    """Yield attempts until one succeeds, or another would be useless; then raise its error.

    within_s: how long to try; 0 for one attempt. Failures of the transport are tried again, and
    answers that mean a verifier not ready, as long as `goes_on` returns True for them.
    """

    def is_worth_retrying(error: Exception) -> bool:
        return isinstance(error, httpx.TransportError | Unavailable) and goes_on(error)

    return stamina.retry_context(
        on=is_worth_retrying,
        attempts=None if within_s else 1,
        timeout=within_s or None,
        wait_initial=0.05,
        wait_max=MAX_WAIT_S,
        wait_jitter=0.05,
    )
