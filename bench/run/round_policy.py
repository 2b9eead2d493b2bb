"""Published systems draft in rounds of a fixed length, where PicoSpec streams.

sync:G    Vanilla speculation (Leviathan et al. 2023): draft G tokens, send them, wait.
paper:G  PicoSpec as published (arXiv:2603.19133): while a round of G is away, the next one is
          drafted from the edge's own last token. One round is away at a time.

The target generates a bonus token after a round that was accepted. While `paper` waits, it
drafts one more token, which the bonus token may confirm. This loses nothing: if the bonus
token is another one, the next round would have been rejected anyway, a round trip later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from speculation.drafting import DraftingSession
from speculation.model_facts import Limits
from speculation.proposer import Latencies

MAX_GAMMA: Final = 16
"""A round has at most this many draft tokens: in the simulator longer ones are never best."""


@dataclass(frozen=True, slots=True)
class RoundPolicy:
    """Drafts in rounds. gamma: draft tokens of a round. overlaps: draft while a round is
    away."""

    gamma: int
    overlaps: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse "sync:4" or "paper:4". Raises ValueError."""
        name, _, gamma = text.partition(":")
        known = name in ("sync", "paper") and gamma.isdecimal()
        if not known or not 1 <= int(gamma) <= MAX_GAMMA:
            raise ValueError(f"expected sync:G or paper:G, G in 1..{MAX_GAMMA}, not {text!r}")
        return cls(int(gamma), overlaps=name == "paper")

    def may_draft(self, session: DraftingSession, latencies: Latencies, limits: Limits) -> bool:
        if self.overlaps:
            return session.unsent < self.gamma + (session.in_flight > 0)
        return not session.in_flight and session.unsent < self.gamma

    def may_look_up(self, *_: object) -> bool:
        return False

    def should_send(self, session: DraftingSession, *, drafting: bool) -> bool:
        """Return True if a whole round is drafted and none is away."""
        return session.unsent > 0 and not drafting and not session.in_flight
