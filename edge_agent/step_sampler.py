"""Draws the draft tokens of a session's steps, from what its request makes of the logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from picospec.speculation.protocol.messages import ModelFacts, Open, TokenId
from picospec.speculation.sampling.adjustments import Adjust, adjustment, in_turn
from picospec.speculation.sampling.distributions import Logits
from picospec.speculation.sampling.draft_token import DraftSampler, DraftToken

StepSampler = Callable[[Sequence[TokenId]], DraftSampler]
"""StepSampler(output) returns the sampler of a step: of each output position whose tokens
before it are the first ones of `output`."""


def step_sampler(
    request: Open,
    facts: ModelFacts,
    draw: DraftSampler,
    draft_tokens: int,
    mask: Adjust | None = None,
) -> StepSampler:
    """Return a session's. Raise InvalidSetting.

    draw: its judge's sampler. draft_tokens: the size of the draft model's vocabulary. Only ids
    that are tokens of both models are proposed. mask: that of the session's grammar.
    """
    size = facts.vocabulary_size
    common = min(size, draft_tokens)
    adjust = in_turn(mask, adjustment(request, vocabulary_size=size))
    if adjust is None:
        return lambda output: lambda logits, position: draw(logits[:common], position)
    return _Adjusted(adjust, draw, common, np.full(size - common, -np.inf, np.float32))


@dataclass(frozen=True, slots=True)
class _Adjusted:
    """A StepSampler whose samplers draw from adjusted logits."""

    adjust: Adjust
    draw: DraftSampler
    common: int
    unknown: Logits
    """-inf for each of the target's tokens that the draft model lacks."""

    def __call__(self, output: Sequence[TokenId]) -> DraftSampler:
        def pick(logits: Logits, position: int) -> DraftToken:
            logits = logits[: self.common]
            if self.unknown.size:
                logits = np.concatenate([logits, self.unknown])
            return self.draw(self.adjust(logits, output[:position]), position)

        return pick
