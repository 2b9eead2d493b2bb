"""What the edge knows of one verifier: whether it answers, how far it is, and how busy."""

from __future__ import annotations

import time
from typing import Final

from picospec.edge_agent.metrics import EdgeMetrics
from picospec.speculation.smoothing import smoothed

RTT_WEIGHT: Final = 0.125
"""Weight of the latest round trip in the smoothed one, as in TCP (RFC 6298, section 2)."""

BUSY_S: Final = 0.1
"""How much farther away a verifier counts whose sessions are all taken. A session more makes
the passes of the others longer, by tens of milliseconds where many share them."""


class Health:
    """number: the verifier's place in the settings, from 0. Its address is in no metric, since
    anybody may read these."""

    def __init__(self, number: int, metrics: EdgeMetrics) -> None:
        self._reachable = False
        """Whether it answered when it was last heard of."""

        self._draining = False
        """Whether it takes no new sessions any more; those that run go on."""

        self.rtt_s = 0.0
        """The smoothed round trip; 0 until the first sample."""

        self.load = 0.0
        """The share of its sessions that are taken, from 0 to 1."""

        self.sessions = metrics.verifier_sessions.labels(str(number))
        self._ready_gauge = metrics.verifier_ready.labels(str(number))
        self._rtt_gauge = metrics.verifier_rtt_s.labels(str(number))

    @property
    def cost_s(self) -> float:
        """What choosing this verifier costs, as a round trip."""
        return self.rtt_s + BUSY_S * self.load

    @property
    def ready(self) -> bool:
        """Whether it takes new sessions, as far as is known."""
        return self._reachable and not self._draining

    def answered(self, begun: float) -> None:
        """Take in a round trip that began at that time and ends now."""
        self.rtt_s = smoothed(self.rtt_s or None, time.monotonic() - begun, RTT_WEIGHT)
        self._rtt_gauge.set(self.rtt_s)
        self.set_reachable(True)

    def set_reachable(self, reachable: bool) -> None:
        self._reachable = reachable
        self._ready_gauge.set(self.ready)

    def set_draining(self, draining: bool) -> None:
        self._draining = draining
        self._ready_gauge.set(self.ready)
