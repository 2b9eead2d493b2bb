"""A step that a session asks the draft model's thread for, and the slot that it is for."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

from picospec.edge_agent.draft_model.drafter import CannotDraft
from picospec.speculation.protocol.messages import TokenId
from picospec.speculation.sampling.draft_token import DraftSampler, DraftToken


@dataclass(slots=True)
class KvSlot:
    """One sequence of the KV cache."""

    index: int
    tokens: list[TokenId] = field(default_factory=list)
    """The cache holds these of the sequence. Only the thread changes it."""

    owner: object = None
    """Whose prompt they are of. Only the thread changes it."""

    taken: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class StepRequest:
    """A step that a session asked for, see DraftSlot.step."""

    slot: KvSlot
    context: Sequence[TokenId]
    ahead: Sequence[TokenId]
    position: int
    """The first draft token goes there, counted from the end of the prompt."""

    sampler: DraftSampler
    owner: object = None
    drafts: Future[list[DraftToken]] = field(default_factory=Future)
    """The result. The session cancels it when it does not need the step any more."""

    def succeed(self, drafts: list[DraftToken]) -> None:
        with suppress(InvalidStateError):  # it was cancelled, or has failed, in another thread
            self.drafts.set_result(drafts)

    def fail(self, reason: CannotDraft) -> None:
        with suppress(InvalidStateError):
            self.drafts.set_exception(reason)
