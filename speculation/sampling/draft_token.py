"""What the edge takes the target to say at one position."""

from __future__ import annotations

from dataclasses import dataclass

from speculation.protocol.messages import TokenId
from speculation.sampling.distributions import QuantisedDistribution


@dataclass(frozen=True, slots=True)
class DraftToken:
    token: TokenId
    confidence: float
    """The edge's estimate that the target says this token, given that the ones before stand."""

    q: QuantisedDistribution | None = None
    """`separate`: the distribution it was drawn from."""

    forced: bool = False
    """`separate`: it replaces a rejected token; the target will say it."""
