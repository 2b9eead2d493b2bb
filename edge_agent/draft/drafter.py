"""The interface of a draft model: a session takes a slot and asks it for draft tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from speculation.distributions import Logits
from speculation.draft_token import DraftSampler, DraftToken
from speculation.logits import Adjust, adjustment, in_turn
from speculation.messages import Open
from speculation.model_facts import ModelFacts, TokenId

StepSampler = Callable[[Sequence[TokenId]], DraftSampler]
"""StepSampler(output) returns a step's sampler, which draws at each output position whose
preceding tokens are the first tokens of `output`."""


class CannotDraft(Exception):
    """The draft model failed at this step; the session goes on without drafts."""


class DraftSlot(Protocol):
    """A session's slot in the draft model."""

    async def step(
        self, context: Sequence[TokenId], sampler: StepSampler, *, ahead: Sequence[TokenId] = ()
    ) -> list[DraftToken]:
        """Return the draft token that follows `context`, and more where `ahead` agrees.

        A draft model of another vocabulary may return none, if it has not yet completed one, or
        several.

        context: begins with the session's prompt; the caller must not change it. ahead: tokens
        that may follow, read in the same pass. Each of them that equals the draft token at its
        position yields the draft token after it. Raises CannotDraft. A cancelled step costs at
        most the running pass.
        """

    def leave(self) -> None:
        """Give the slot back. Harmless when repeated."""


class Drafter(Protocol):
    """A Drafter is what an answer needs of a draft model, which may not be loaded yet."""

    def take(
        self, prompt: Sequence[TokenId], owner: object = None, *, whole: bool = False
    ) -> DraftSlot | None:
        """Return a free slot, or None, as for an empty prompt; the caller must leave it. owner:
        the prompt's owner; only this owner may reuse the slot's tokens. whole: every step must
        read its whole context, so the slot must have room for the prompt."""

    @property
    def is_late(self) -> bool:
        """True if the draft model is not there yet; `wake` brings it."""

    async def wake(self) -> None:
        """Return when the draft model is there. Raises CannotDraft."""

    def close(self) -> bool:
        """Free everything, cancel running steps, and return True. Return False if the draft
        model is still in use because a pass does not end."""


class LoadedDrafter(Drafter, Protocol):
    """A LoadedDrafter is a draft model in memory."""

    @property
    def read_tokens(self) -> int:
        """The number of prompt tokens that the draft model has read, without reused ones."""

    @property
    def is_idle(self) -> bool:
        """True if no slot is taken."""

    @property
    def is_stuck(self) -> bool:
        """True if a pass takes so long that it may never end. Then no slot is free."""

    async def watch(self) -> None:
        """Fail waiting steps while the draft model is stuck, and log that, until cancelled."""


class NoDrafter:
    """A Drafter without slots: draft tokens come only from lookup. Others may be made of it."""

    is_late = is_stuck = False
    is_idle = True
    read_tokens = 0

    async def watch(self) -> None:
        pass

    async def wake(self) -> None:
        pass

    def take(
        self, prompt: Sequence[TokenId], owner: object = None, *, whole: bool = False
    ) -> DraftSlot | None:
        return None

    def close(self) -> bool:
        return True


def drafts_while_matching(
    draft: Callable[[int], DraftToken], ahead: Sequence[TokenId]
) -> list[DraftToken]:
    """Return the draft tokens of a step that also read `ahead`, see DraftSlot.step.

    draft(n): returns the draft token after the context and n tokens of `ahead`.
    """
    drafts = [draft(0)]
    for n, token in enumerate(ahead, start=1):
        if drafts[-1].token != token:
            break
        drafts.append(draft(n))
    return drafts


def step_sampler(
    request: Open,
    facts: ModelFacts,
    draw: DraftSampler,
    draft_tokens: int,
    mask: Adjust | None = None,
) -> StepSampler:
    """Return a session's StepSampler, which applies the request's adjustments to the logits.
    Raise InvalidSetting.

    draw: the judge's sampler. draft_tokens: the size of the draft model's vocabulary. Only ids
    that are tokens of both models are proposed. mask: the mask of the session's grammar.
    """
    size = facts.vocabulary_size
    common = min(size, draft_tokens)
    adjust = in_turn(mask, adjustment(request, vocabulary_size=size))
    only_targets = size - common if adjust else 0
    lacking = np.full(only_targets, -np.inf, np.float32)

    def sampler(output: Sequence[TokenId]) -> DraftSampler:
        def pick(logits: Logits, position: int) -> DraftToken:
            logits = logits[:common]
            if adjust is not None:
                if lacking.size:
                    logits = np.concatenate([logits, lacking])
                logits = adjust(logits, output[:position])
            return draw(logits, position)

        return pick

    return sampler
