"""The verifiers that an edge knows: the state of each, and which one is the best.

Nothing here has a clock or does I/O. The code that talks to a verifier notes what happened.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from picospec.speculation.learning import running_mean
from picospec.speculation.messages import ModelFacts

RTT_WEIGHT: Final = 0.125
"""The latest round trip has this weight in the mean, as in TCP (RFC 6298, section 2)."""

BUSY_S: Final = 0.1
"""A verifier whose sessions are all taken counts as this much farther away. Each session more
lengthens the passes of the others, by tens of milliseconds where many share them."""

STAY_S: Final = 0.05
"""Of ready verifiers, the one in use counts as this much nearer, because it has the beginning
of the conversation in its KV cache."""


class Event(Enum):
    """The events that show a verifier's state."""

    ANSWERED = auto()  # it took a session or a draft
    IS_READY = auto()  # it said that it opens sessions
    DRAINS = auto()  # it said that it opens none, because it is about to stop
    LOST = auto()  # it did not answer in time, or one of its streams was cut


@dataclass(slots=True, eq=False)
class Endpoint:
    """One verifier. number: its place in the settings, from 0."""

    number: int
    state: Event | None = None
    """The latest event; None before the verifier was asked."""

    identity: str = ""
    """The identity in the latest facts; empty before the first."""

    identities: frozenset[str] = frozenset()
    """The identities of the model and its adapters."""

    is_compatible: bool = True
    """True if the verifier speaks this edge's version of the protocol, as far as is known."""

    rtt_s: float = 0.0
    """The smoothed round trip; 0 until the first sample."""

    load: float = 0.0
    """The share of its sessions that are taken, from 0 to 1."""

    def note(self, event: Event) -> None:
        if not (event is Event.ANSWERED and self.state is Event.DRAINS):
            self.state = event  # a draining verifier finishes its sessions, and opens no more

    def timed(self, round_trip_s: float) -> None:
        self.rtt_s = running_mean(self.rtt_s or None, round_trip_s, RTT_WEIGHT)

    def learn(self, facts: ModelFacts) -> None:
        self.identity, self.is_compatible = facts.identity, facts.is_compatible
        self.identities = frozenset((facts.identity, *facts.adapters.values()))

    @property
    def is_ready(self) -> bool:
        """True if the verifier opens sessions, as far as is known."""
        return self.state in (Event.ANSWERED, Event.IS_READY)

    def may_serve(self, identity: str) -> bool:
        """Return True if it could go on with texts of this identity, as far as is known."""
        return self.is_compatible and (not self.identity or identity in self.identities)


class Fleet:
    """current: the endpoint in use, whose facts were returned last."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.endpoints = endpoints
        self.current = endpoints[0]

    @property
    def is_ready(self) -> bool:
        """True if any verifier is ready, as far as is known."""
        return any(endpoint.is_ready for endpoint in self.endpoints)

    def ranked(self, identity: str) -> list[Endpoint]:
        """Return the endpoints, best first: ready ones, of this identity, near and idle."""

        def cost(endpoint: Endpoint) -> tuple[bool, bool, float]:
            stays_s = STAY_S if endpoint is self.current else 0.0
            cost_s = endpoint.rtt_s + BUSY_S * endpoint.load - stays_s
            return not endpoint.is_ready, not endpoint.may_serve(identity), cost_s

        return sorted(self.endpoints, key=cost)

    def choose(self, identity: str, without: Collection[Endpoint] = ()) -> Endpoint | None:
        """Return the best endpoint that can go on with texts of this identity, if any; ready
        ones come first."""
        ranked = (e for e in self.ranked(identity) if e.may_serve(identity))
        return next((e for e in ranked if e not in without), None)
