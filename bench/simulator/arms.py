"""The systems compared, as the decisions in which they differ.

cloud              the target alone, streaming
sync               vanilla speculation: draft gamma, send, wait (Leviathan et al. 2023)
paper              PicoSpec as published (arXiv:2603.19133): one round in flight while the next
                   is drafted; no token of the target's own when all of a round stands
picospec           this product, `auto`
picospec-nofill    the same, fill `never`
picospec-nolookup  the same as picospec, without prompt lookup
colocated          sync beside the target: no link, but drafting takes the target's time

Hosts, link, prompts and the head start while the target reads the prompt are the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from speculation.drafting import policy as pacing
from speculation.drafting.policy import DraftSettings
from speculation.drafting.session import DraftingSession
from speculation.proposing.prompt_lookup import Times
from speculation.protocol.messages import Fill, Limits
from speculation.verifying import pass_policy as passes
from speculation.verifying.arrivals import Arrivals
from speculation.verifying.row_allocation import PassLatency
from speculation.verifying.session import VerifyingSession


@dataclass(slots=True)
class Desk:
    """What the edge knows when it decides."""

    session: DraftingSession
    limits: Limits
    rtt_s: float
    draft_s: float
    pass_s: float = 0.0

    @property
    def times(self) -> Times:
        return Times(self.rtt_s, self.pass_s, self.draft_s)


@dataclass(slots=True)
class Seat:
    """What the verifier knows of a session when it decides."""

    session: VerifyingSession
    arrivals: Arrivals
    times: PassLatency
    most: int
    """Drafts that a pass may judge."""

    committed_s: float
    """When its last Commit was sent."""


class Arm:
    """Decisions of the target alone; the others override what they do differently."""

    name: str = "cloud"
    fill: Fill = "always"
    bonus: ClassVar[bool] = True
    """Whether a pass whose drafts all stand also says the token after them."""

    beside: ClassVar[bool] = False
    """Whether the draft model runs on the target's host."""

    waits: ClassVar[bool] = False
    """Whether the target rests while it drafts."""

    lookup: bool = False
    """Whether it guesses also what followed when the same was said before."""

    gamma: int = 0

    def may_draft(self, desk: Desk) -> bool:
        return False

    def may_look_up(self, desk: Desk) -> bool:
        return False

    def should_flush(self, desk: Desk, drafting: bool) -> bool:
        """drafting: another guess is about to be made."""
        return not drafting

    def hold_s(self, seat: Seat, now_s: float) -> float:
        """Return how long to hold the session's pass; inf waits for a draft."""
        return 0.0 if self.fill == "always" or seat.session.pending else float("inf")

    def share(self, seats: Sequence[Seat], times: PassLatency, most: int) -> list[int]:
        """Return how many drafts of each session the pass judges."""
        return [seat.session.affordable for seat in seats]


@dataclass(frozen=True)
class Sync(Arm):
    gamma: int
    name: str = "sync"
    fill: Fill = "never"
    waits: ClassVar[bool] = True

    def may_draft(self, desk: Desk) -> bool:
        return not desk.session.away and desk.session.unsent < self.gamma


@dataclass(frozen=True)
class Paper(Arm):
    gamma: int
    name: str = "paper"
    fill: Fill = "never"
    bonus: ClassVar[bool] = False

    def may_draft(self, desk: Desk) -> bool:
        return desk.session.unsent < self.gamma

    def should_flush(self, desk: Desk, drafting: bool) -> bool:
        return not drafting and not desk.session.away


@dataclass(frozen=True)
class Colocated(Sync):
    name: str = "colocated"
    beside: ClassVar[bool] = True


@dataclass(frozen=True)
class PicoSpec(Arm):
    name: str = "picospec"
    fill: Fill = "auto"
    pacing: DraftSettings = field(default_factory=DraftSettings)
    lookup: bool = True

    def may_draft(self, desk: Desk) -> bool:
        room = pacing.window(desk.limits, desk.times)
        return pacing.may_draft(self.pacing, desk.session, desk.times, room)

    def may_look_up(self, desk: Desk) -> bool:
        room = desk.limits.max_ahead
        return pacing.may_draft(self.pacing, desk.session, desk.times, room)

    def should_flush(self, desk: Desk, drafting: bool) -> bool:
        return pacing.should_flush(self.pacing, desk.session, drafting=drafting, separate=False)

    def hold_s(self, seat: Seat, now_s: float) -> float:
        return passes.hold_s(seat.session, seat.arrivals, seat.times, seat.most, now_s)

    def share(self, seats: Sequence[Seat], times: PassLatency, most: int) -> list[int]:
        return passes.share_rows([seat.session for seat in seats], times, most=most)
