"""A session's slot in the draft model's KV cache, and the steps that it asks the thread for."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

from picospec.edge_agent.draft_model.drafter import CannotDraft
from picospec.edge_agent.draft_model.view import WHOLE, Reading, View
from picospec.edge_agent.step_sampler import StepSampler
from picospec.models.llama_cpp.kv_reuse import common_prefix
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

    view: View = WHOLE
    """They are this of a context. Only the event loop changes it."""

    taken: bool = False
    taken_at: int = 0
    """So many slots had been taken when this one was."""

    def view_of(self, prompt: Sequence[TokenId], owner: object, reading: Reading) -> View:
        """Return what would be read of a prompt here."""
        return reading.view(prompt, self._held_of(owner), self.view)

    def cost(
        self, prompt: Sequence[TokenId], owner: object, reading: Reading
    ) -> tuple[bool, int]:
        """Return what orders slots for a prompt: that which holds most of it comes first, if
        that is half of what it holds; then that which was taken least recently."""
        held = self._held_of(owner)
        kept = common_prefix(held, self.view_of(prompt, owner, reading).of(prompt))
        return (False, -kept) if 2 * kept >= len(held) > 0 else (True, self.taken_at)

    def _held_of(self, owner: object) -> list[TokenId]:
        return self.tokens if self.owner is owner else []


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


@dataclass(slots=True)
class LlamaSlot:
    """A DraftSlot whose steps go to the thread through `requests`. whole: its steps read
    nothing less than their contexts."""

    slot: KvSlot
    prompt_tokens: int
    requests: queue.SimpleQueue[StepRequest | None]
    reading: Reading
    owner: object
    whole: bool
    _left: bool = False

    async def step(
        self,
        context: Sequence[TokenId],
        sampler: StepSampler,
        *,
        ahead: Sequence[TokenId] = (),
    ) -> list[DraftToken]:
        seen = self._seen(context)
        ahead = ahead[: max(0, self.reading.room - len(seen))]
        position = len(context) - self.prompt_tokens
        # a row of `ahead` is used only where the draft tokens before it equal those ahead
        draw = sampler([*context[self.prompt_tokens :], *ahead])
        request = StepRequest(self.slot, seen, ahead, position, draw, self.owner)
        self.requests.put(request)
        return await asyncio.wrap_future(request.drafts)

    def _seen(self, context: Sequence[TokenId]) -> list[TokenId]:
        """Return the slot's view of a context; another one where the slot is too small."""
        seen = self.slot.view.of(context)
        if len(seen) > self.reading.room and not self.whole:
            self.slot.view = self.reading.view(context)
            seen = self.slot.view.of(context)
        return seen

    def leave(self) -> None:
        if not self._left:
            self._left = True
            self.slot.taken = False
