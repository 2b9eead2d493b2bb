"""The verifiers that an edge knows: what state each is in, and which one is the best.

Nothing here has a clock or does I/O. Whoever talks to a verifier notes what happened.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from picospec.speculation.proposing.precision import smoothed
from picospec.speculation.protocol.messages import ModelFacts

RTT_WEIGHT: Final = 0.125
"""Weight of the latest round trip in the smoothed one, as in TCP (RFC 6298, section 2)."""

BUSY_S: Final = 0.1
"""A verifier whose sessions are all taken counts as so much farther away. A session more makes
the passes of the others longer, by tens of milliseconds where many share them."""

STAY_S: Final = 0.05
"""Another verifier must be so much nearer for new answers to move there: the one in use holds
the beginning of the conversation in its KV cache."""


class Event(Enum):
    """What a verifier shows of itself."""

    ANSWERED = auto()  # it took a session or a draft
    IS_READY = auto()  # it said that it opens sessions
    DRAINS = auto()  # it said that it does not, because it is about to stop
    LOST = auto()  # it did not answer in time, or a stream of its was cut


@dataclass(slots=True, eq=False)
class Endpoint:
    """One verifier. number: its place in the settings, from 0."""

    number: int
    state: Event | None = None
    """What it has shown last; None before it was asked."""

    identity: str = ""
    """The identity of the facts fetched last; empty before."""

    identities: frozenset[str] = frozenset()
    """The model and its adapters have these."""

    speaks: bool = True
    """It says whether the verifier speaks this edge's version of the protocol, as far as is
    known."""

    rtt_s: float = 0.0
    """The smoothed round trip; 0 until the first sample."""

    load: float = 0.0
    """The share of its sessions that are taken, from 0 to 1."""

    def note(self, event: Event) -> None:
        if not (event is Event.ANSWERED and self.state is Event.DRAINS):
            self.state = event  # one that drains finishes what runs, and opens no more

    def timed(self, round_trip_s: float) -> None:
        self.rtt_s = smoothed(self.rtt_s or None, round_trip_s, RTT_WEIGHT)

    def describe(self, facts: ModelFacts) -> None:
        self.identity, self.speaks = facts.identity, facts.speaks
        self.identities = frozenset((facts.identity, *facts.adapters.values()))

    @property
    def is_ready(self) -> bool:
        """Whether it opens sessions, as far as is known."""
        return self.state in (Event.ANSWERED, Event.IS_READY)

    def may_serve(self, identity: str) -> bool:
        """Return whether it could go on with texts of that identity, as far as is known."""
        return self.speaks and (not self.identity or identity in self.identities)


class Fleet:
    """current: the endpoint in use, whose facts were given out last."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.endpoints = endpoints
        self.current = endpoints[0]

    @property
    def is_ready(self) -> bool:
        """Whether any was ready when it was last heard of."""
        return any(endpoint.is_ready for endpoint in self.endpoints)

    def ranked(self, identity: str) -> list[Endpoint]:
        """Return the endpoints, the best first: ready ones, of that identity, near and idle."""

        def cost(endpoint: Endpoint) -> tuple[bool, bool, float]:
            stays_s = STAY_S if endpoint is self.current else 0.0
            cost_s = endpoint.rtt_s + BUSY_S * endpoint.load - stays_s
            return not endpoint.is_ready, not endpoint.may_serve(identity), cost_s

        return sorted(self.endpoints, key=cost)

    def choose(self, identity: str, without: Collection[Endpoint] = ()) -> Endpoint | None:
        """Return the best endpoint that can go on with texts of that identity, if any; one that
        is ready, if any is."""
        ranked = (e for e in self.ranked(identity) if e.may_serve(identity))
        return next((e for e in ranked if e not in without), None)
