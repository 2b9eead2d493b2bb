"""The interface by which a machine gets draft tokens without a draft step, and the latencies
that decide about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from speculation.draft_token import DraftToken
from speculation.model_facts import TokenId


@dataclass(frozen=True, slots=True)
class Latencies:
    """The latencies that the edge has measured, in seconds; each is 0 until it is measured."""

    rtt_s: float  # one round trip to the verifier
    pass_s: float  # one pass of the target
    draft_s: float
    """One step of the draft model over one token; inf if there is no draft model to ask."""


class Proposer(Protocol):
    """Proposes draft tokens for one session, whose judge takes any draft token."""

    def follow(self, committed: Sequence[TokenId], chain: Sequence[DraftToken]) -> None:
        """Move to the end of the chain. This is called before `propose` and `ahead` whenever
        the text or the chain has changed."""

    def propose(self, latencies: Latencies) -> DraftToken | None:
        """Return the token to append to the chain unread, None if no token is worth it."""

    def ahead(self, latencies: Latencies) -> list[TokenId]:
        """Return the tokens for the draft model to read after the chain in its next step."""

    def observe_reading(self, more: int, took_s: float, draft_s: float) -> None:
        """Learn from a step that read `more` extra tokens. draft_s: a step over one token."""
