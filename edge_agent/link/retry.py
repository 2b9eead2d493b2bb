"""How the link tries again: soon, then less often, and never at the same moment as others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

import httpx
import stamina

from picospec.gateway.errors import Unavailable
from picospec.gateway.http.request_body import LEAST_BYTES_PER_S

MAX_WAIT_S: Final = 0.5
"""Longest wait between two attempts, so that a link that is back is found soon."""

RESPONSE_TIMEOUT_S: Final = 10.0
"""Time until the first byte of a stream's response, where only this verifier can give it."""

OPEN_TIMEOUT_S: Final = 2.0
"""Time until the first byte of an Open's response where another verifier could be asked. What
the upload of the Open takes at LEAST_BYTES_PER_S is added to it."""

RESUME_S: Final = 1.0
"""How long a lost stream may take to come back before another verifier takes over."""


@dataclass(frozen=True, slots=True)
class Retries:
    """How long a link holds on to its verifier."""

    elsewhere: Callable[[], bool] = lambda: False
    """Returns whether another verifier could take over now."""

    within_s: float = 30.0
    """How long a lost stream is resumed where none can."""

    def open_timeout_s(self, frame_bytes: int) -> float:
        """Return how long an Open of that size may wait for the first byte of its response."""
        if not self.elsewhere():
            return RESPONSE_TIMEOUT_S
        return min(RESPONSE_TIMEOUT_S, OPEN_TIMEOUT_S + frame_bytes / LEAST_BYTES_PER_S)

    @property
    def resume_timeout_s(self) -> float:
        """How long a request for the rest of a stream may wait for its first byte."""
        return RESUME_S if self.elsewhere() else RESPONSE_TIMEOUT_S


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
