"""A token that the edge proposes for one position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Final, Literal

from speculation.distributions import Logits, QuantisedDistribution
from speculation.model_facts import TokenId

Origin = Literal["draft", "ahead", "lookup", "grammar"]
STEPS: Final[tuple[Origin, ...]] = ("draft", "ahead")  # the origins of a draft model's tokens
"""The source of a token: the draft model; text read ahead, if the draft model agreed with it;
prompt lookup or a grammar, without a draft step."""


@dataclass(frozen=True, slots=True)
class DraftToken:
    token: TokenId
    confidence: float
    """The edge's estimate that it is accepted if all draft tokens before it are."""

    q: QuantisedDistribution | None = None
    """The distribution that the token was drawn from, if its weight there is sent with it."""

    origin: Origin = "draft"


DraftSampler = Callable[[Logits, int], DraftToken]
"""DraftSampler(logits, position) returns the draft token for an output position.

logits: float32[V], the draft model's. It runs in the draft model's thread and keeps no
reference to the logits."""


def mark_ahead(tokens: Sequence[DraftToken], ahead: Sequence[TokenId]) -> Sequence[DraftToken]:
    """Return a step's draft tokens; mark those that agree with the text read ahead."""
    if not ahead:
        return tokens
    pairs = takewhile(lambda pair: pair[0].token == pair[1], zip(tokens, ahead, strict=False))
    agreed = [replace(drafted, origin="ahead") for drafted, _ in pairs]
    return [*agreed, *tokens[len(agreed) :]]
