"""Ends a model's reasoning after a number of tokens: then only the closing token is possible.

Like `adjustments`, this depends only on the setting and the text before a position, and the
judge and the edge apply the same function. It affects only one position: the first one beyond
the budget, unless the reasoning has ended before it or never began.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Final

import msgspec
import numpy as np
from msgspec import Meta

from speculation.distributions import Logits
from speculation.errors import InvalidSetting
from speculation.messages import Open
from speculation.model_facts import TokenId
from speculation.untrusted import Malformed, decode_json

BUDGET: Final = "thinking_budget"


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: Annotated[int, Meta(ge=0)]
    closing: Annotated[TokenId, Meta(ge=0)]
    """The token that ends the reasoning."""

    opening: Annotated[TokenId, Meta(ge=0)] | None = None
    """The token that begins an answer with reasoning; None if the prompt has begun it."""

    def adjust(self, logits: Logits, output: Sequence[TokenId]) -> Logits:
        """Return the adjusted logits (float32[V]) after `output`. See `adjustments.Adjust`."""
        begins = self.opening is not None
        if len(output) != self.tokens + begins or self.closing in output:
            return logits
        if begins and output[0] != self.opening:
            return logits
        only = np.full_like(logits, -np.inf)
        only[self.closing] = 0.0
        return only


def budget(
    request: Open, *, vocabulary_size: int
) -> Callable[[Logits, Sequence[TokenId]], Logits]:
    """Return the Adjust for the budget of a request that has one. Raise InvalidSetting."""
    try:
        limits = decode_json(bytes(request.sampling.extras[BUDGET]), Budget)
    except Malformed as error:
        raise InvalidSetting(BUDGET, str(error)) from None
    if (highest := max(limits.closing, limits.opening or 0)) >= vocabulary_size:
        raise InvalidSetting(BUDGET, f"{highest} is not a token")
    return partial(Budget.adjust, limits)
