"""What sessions and the draft model's thread share: KV slots, and requests for steps."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from speculation.protocol.messages import TokenId
from speculation.sampling.draft_sampler import DraftSampler
from speculation.sampling.draft_token import DraftToken


@dataclass(slots=True)
class KvSlot:
    """One sequence of the KV cache."""

    index: int
    tokens: list[TokenId] = field(default_factory=list)
    """What the cache holds of this sequence. Only the thread changes it."""

    taken: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class StepRequest:
    """A step that a session asked for, see DraftSlot.step."""

    slot: KvSlot
    context: Sequence[TokenId]
    ahead: Sequence[TokenId]
    position: int
    """Where the first draft token goes, counted from the end of the prompt."""

    sampler: DraftSampler
    drafts: Future[list[DraftToken]]
    """The result. The session cancels it when it does not need the step any more."""


class LlamaSlot:
    """A DraftSlot whose steps go to the thread through `requests`."""

    def __init__(
        self,
        slot: KvSlot,
        prompt_tokens: int,
        requests: queue.SimpleQueue[StepRequest | None],
        context_tokens: int,
    ) -> None:
        self.context_tokens = context_tokens
        self._slot = slot
        self._prompt_tokens = prompt_tokens
        self._requests = requests
        self._left = False

    async def step(
        self,
        context: Sequence[TokenId],
        sampler: DraftSampler,
        *,
        ahead: Sequence[TokenId] = (),
    ) -> list[DraftToken]:
        drafts: Future[list[DraftToken]] = Future()
        position = len(context) - self._prompt_tokens
        ahead = ahead[: max(0, self.context_tokens - len(context))]
        self._requests.put(StepRequest(self._slot, context, ahead, position, sampler, drafts))
        return await asyncio.wrap_future(drafts)

    def leave(self) -> None:
        if not self._left:
            self._left = True
            self._slot.taken = False
