"""What sessions and the draft model's thread share: KV slots, and requests for steps."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Sequence
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
    drafts: asyncio.Future[list[DraftToken]]

    def settle(self, result: list[DraftToken] | Exception | None) -> None:
        """Hand the result to the session, from the thread. None cancels the step."""

        def settle() -> None:
            if self.drafts.done():
                return
            if isinstance(result, Exception):
                self.drafts.set_exception(result)
            elif result is not None:
                self.drafts.set_result(result)
            else:
                self.drafts.cancel()

        try:
            self.drafts.get_loop().call_soon_threadsafe(settle)
        except RuntimeError:  # the event loop has ended, and the session with it
            return


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
        drafts: asyncio.Future[list[DraftToken]] = asyncio.get_running_loop().create_future()
        position = len(context) - self._prompt_tokens
        ahead = ahead[: max(0, self.context_tokens - len(context))]
        self._requests.put(StepRequest(self._slot, context, ahead, position, sampler, drafts))
        return await drafts

    def leave(self) -> None:
        if not self._left:
            self._left = True
            self._slot.taken = False
