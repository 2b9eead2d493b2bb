"""What a machine needs of whatever proposes draft tokens without a draft step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from picospec.speculation.proposing.latencies import Latencies
from picospec.speculation.protocol.messages import TokenId
from picospec.speculation.sampling.draft_token import DraftToken


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
