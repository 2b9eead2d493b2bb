"""What the edge has measured of the things it waits for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Latencies:
    """All are in seconds, and 0 until they are measured."""

    rtt_s: float  # one round trip to the verifier
    pass_s: float  # one pass of the target
    draft_s: float
    """One step of the draft model over one token; inf where no draft model can be asked."""
