"""A token that the edge proposes for one position."""

from __future__ import annotations

from dataclasses import dataclass

from speculation.protocol.messages import TokenId
from speculation.sampling.distributions import QuantisedDistribution


@dataclass(frozen=True, slots=True)
class DraftToken:
    token: TokenId
    confidence: float
    """The edge's estimate that it is accepted if all draft tokens before it are."""

    q: QuantisedDistribution | None = None  # `separate`: the distribution it was drawn from
    forced: bool = False
    """`separate`: it is the recovered token, which the verifier must commit."""
