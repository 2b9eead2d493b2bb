"""The link's round-trip time, smoothed."""

from __future__ import annotations

from typing import Final

from prometheus_client import Gauge

from speculation.smoothing import smoothed

_WEIGHT: Final = 0.125
"""Weight of the latest sample, as in TCP (RFC 6298, section 2)."""


class RoundTrip:
    """Every post of drafts is a sample, because the verifier answers it at once."""

    def __init__(self, gauge: Gauge) -> None:
        self.seconds = 0.0
        """The smoothed time; 0 until the first sample."""

        self._gauge = gauge

    def observe(self, seconds: float) -> None:
        self.seconds = smoothed(self.seconds or None, seconds, _WEIGHT)
        self._gauge.set(self.seconds)
