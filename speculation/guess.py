"""What the edge takes the target to say at one position."""

from __future__ import annotations

from dataclasses import dataclass

from speculation.laws import DraftLaw
from speculation.messages import TokenId


@dataclass(frozen=True, slots=True)
class Guess:
    token: TokenId
    confidence: float
    """The edge's estimate that the target says this token, given that the ones before stand."""

    q: DraftLaw | None = None
    """`separate`: the law it was drawn from."""

    forced: bool = False
    """`separate`: it replaces a refused token; the target will say it."""
