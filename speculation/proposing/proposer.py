"""What a machine needs of whatever proposes draft tokens without a draft step, and the times
that it goes by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from picospec.speculation.protocol.messages import TokenId
from picospec.speculation.sampling.draft_token import DraftToken


@dataclass(frozen=True, slots=True)
class Latencies:
    """What the edge has measured. All are in seconds, and 0 until they are measured."""

    rtt_s: float  # one round trip to the verifier
    pass_s: float  # one pass of the target
    draft_s: float
    """One step of the draft model over one token; inf where no draft model can be asked."""


class Proposer(Protocol):
    """It proposes for one session, whose judge takes any draft token."""

    def follow(self, committed: Sequence[TokenId], chain: Sequence[DraftToken]) -> None:
        """Move to the end of the chain. It is called before `propose` and `ahead` whenever the
        text or the chain has changed."""

    def propose(self, latencies: Latencies) -> DraftToken | None:
        """Return the token to put behind the chain unread, if there is one worth it."""

    def ahead(self, latencies: Latencies) -> list[TokenId]:
        """Return what the draft model should read behind the chain in its next step."""

    def observe_reading(self, more: int, took_s: float, draft_s: float) -> None:
        """Learn from a step that read `more` tokens besides one. draft_s: a step over one."""
