"""The product's link, with jitter, a rate and losses: when each segment arrives at its far end.

* All connections share the line: bytes leave one after the other at `rate_mbit`.
* A segment then travels for rtt / 2, plus or minus half the jitter (uniform).
* A lost segment arrives one retransmission timeout later (RFC 6298 keeps it above the RTT).
* Within a connection bytes keep their order, so a late segment delays all behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from random import Random

from picospec.link import MAX_IN_FLIGHT_BYTES, Link

SEGMENT_BYTES = 1448
"""An Ethernet frame with timestamps carries this many bytes of TCP: one loss delays as many."""

MIN_RETRANSMIT_S = 0.2
"""Linux waits at least this long before it retransmits."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """A link has these conditions. Raises ValueError for impossible settings."""

    rtt_ms: float = 0.0
    jitter_ms: float = 0.0
    """A round trip takes rtt_ms +- jitter_ms; each direction draws half of the variation."""

    rate_mbit: float | None = None
    """Each direction carries this many megabits per second; None means an unlimited rate."""

    loss: float = 0.0
    """A segment is lost and sent again with this probability."""

    def __post_init__(self) -> None:
        if self.rtt_ms < 0:
            raise ValueError(f"rtt_ms must not be negative: {self.rtt_ms}")
        if not 0 <= self.jitter_ms <= self.rtt_ms:
            raise ValueError(f"jitter_ms must be in 0..rtt_ms: {self.jitter_ms}")
        if self.rate_mbit is not None and self.rate_mbit <= 0:
            raise ValueError(f"rate_mbit must be positive: {self.rate_mbit}")
        if not 0 <= self.loss < 1:
            raise ValueError(f"loss must be in [0, 1): {self.loss}")

    @property
    def rtt_s(self) -> float:
        return self.rtt_ms / 1000


UNIMPAIRED = Conditions()
"""A link with these conditions forwards at once."""


class Path:
    """A Path is one direction of the link. All connections share its line and distance."""

    def __init__(self, conditions: Conditions, chance: Random) -> None:
        self.conditions = conditions
        self._chance = chance
        self._line_free_s = 0.0
        self.bytes = 0

    def arrival(self, now_s: float, size_bytes: int) -> float:
        """Send `size_bytes` at `now_s`; return the time at which they reach the far end."""
        self.bytes += size_bytes
        return self._leave_line(now_s, size_bytes) + self._travel_s()

    def arrivals(self, now_s: float, data: bytes) -> Iterator[tuple[float, bytes]]:
        """Send data at `now_s`; yield its segments with the times at which they arrive. Those
        that arrive at once are joined."""
        starts = range(0, max(1, len(data)), SEGMENT_BYTES)
        segments = (data[start : start + SEGMENT_BYTES] for start in starts)
        due = [(self.arrival(now_s, len(segment)), segment) for segment in segments]
        for at_s, some in groupby(due, key=itemgetter(0)):
            yield at_s, b"".join(segment for _, segment in some)

    def _leave_line(self, now_s: float, size_bytes: int) -> float:
        rate_mbit = self.conditions.rate_mbit
        if rate_mbit is None:
            return now_s
        start_s = max(now_s, self._line_free_s)
        self._line_free_s = start_s + size_bytes * 8 / (rate_mbit * 1e6)
        return self._line_free_s

    def _travel_s(self) -> float:
        conditions = self.conditions
        travel_s = conditions.rtt_s / 2
        if conditions.jitter_ms:
            travel_s += (self._chance.random() - 0.5) * conditions.jitter_ms / 1000
        if conditions.loss and self._chance.random() < conditions.loss:
            travel_s += max(MIN_RETRANSMIT_S, conditions.rtt_s)
        return travel_s


class EmulatedLink(Link):
    """The relay with conditions that can change."""

    def __init__(
        self,
        upstream: tuple[str, int],
        conditions: Conditions = UNIMPAIRED,
        *,
        seed: int = 0,
        max_in_flight_bytes: int = MAX_IN_FLIGHT_BYTES,
    ) -> None:
        super().__init__(upstream, conditions.rtt_s, max_in_flight_bytes)
        self.up: Path = Path(conditions, Random(f"{seed} up"))
        self.down: Path = Path(conditions, Random(f"{seed} down"))

    def change(self, conditions: Conditions) -> None:
        """Change the conditions. Data in transit is not affected."""
        self.up.conditions = self.down.conditions = conditions
        self.rtt_s = conditions.rtt_s
