"""Draws the draft tokens of a session's steps, from what its request makes of the logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from speculation.drafting.machine import DraftStep
from speculation.protocol.messages import ModelFacts, Open
from speculation.sampling import draft_sampler
from speculation.sampling.adjustments import Adjust, adjustment
from speculation.sampling.distributions import Logits
from speculation.sampling.draft_sampler import DraftSampler
from speculation.sampling.draft_token import DraftToken

StepSampler = Callable[[DraftStep], DraftSampler]
"""Returns the sampler of a step, which may depend on the text that the step follows."""


def step_sampler(
    request: Open, facts: ModelFacts, chance: np.random.Generator, draft_tokens: int
) -> StepSampler:
    """Return a session's. Raise InvalidSetting.

    draft_tokens: the size of the draft model's vocabulary. Only ids that are tokens of both
    models are proposed.
    """
    size = facts.vocabulary_size
    common = min(size, draft_tokens)
    if request.judge == "separate":
        draw = draft_sampler.separate(request.sampling, chance.random)
    else:
        draw = draft_sampler.coupled(request.sampling, request.seed, len(request.prompt))
    adjust = adjustment(request, vocabulary_size=size)
    if adjust is None:
        return lambda step: lambda logits, position: draw(logits[:common], position)
    return _Adjusted(adjust, draw, common, np.full(size - common, -np.inf, np.float32))


@dataclass(frozen=True, slots=True)
class _Adjusted:
    """A StepSampler whose samplers draw from adjusted logits."""

    adjust: Adjust
    draw: DraftSampler
    common: int
    unknown: Logits
    """-inf for each of the target's tokens that the draft model lacks."""

    def __call__(self, step: DraftStep) -> DraftSampler:
        """A row of `ahead` is used only where the draft tokens before it equal those ahead: so
        these are the text before its position."""
        text = [*step.context, *step.ahead]

        def pick(logits: Logits, position: int) -> DraftToken:
            logits = logits[: self.common]
            if self.unknown.size:
                logits = np.concatenate([logits, self.unknown])
            return self.draw(self.adjust(logits, text[:position]), position)

        return pick
