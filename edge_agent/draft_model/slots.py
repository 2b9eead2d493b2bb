"""What jobs and the draft model's thread share: places in its cache, and the steps asked."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Sequence
from dataclasses import dataclass, field

from speculation.protocol.messages import TokenId
from speculation.sampling.draft_sampler import DraftSampler
from speculation.sampling.draft_token import DraftToken


@dataclass(slots=True)
class CacheSequence:
    """A seat's part of the cache."""

    index: int
    tokens: list[TokenId] = field(default_factory=list)
    """What the cache holds. Changed by the thread only."""

    taken: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What a job asks for, see edge_agent.draft_model.drafter.Seat."""

    sequence: CacheSequence
    context: Sequence[TokenId]
    ahead: Sequence[TokenId]
    position: int
    pick: DraftSampler
    guesses: asyncio.Future[list[DraftToken]]

    def settle(self, result: list[DraftToken] | Exception | None) -> None:
        """Tell who waits, from the thread. None cancels it."""

        def settle() -> None:
            if self.guesses.done():
                return
            if isinstance(result, Exception):
                self.guesses.set_exception(result)
            elif result is not None:
                self.guesses.set_result(result)
            else:
                self.guesses.cancel()

        try:
            self.guesses.get_loop().call_soon_threadsafe(settle)
        except RuntimeError:  # the loop has ended, and with it whoever waited
            return


class LlamaSlot:
    """A Seat of the LlamaDrafter that takes steps from `asked`."""

    def __init__(
        self,
        place: CacheSequence,
        prompt_tokens: int,
        asked: queue.SimpleQueue[Step | None],
        context_tokens: int,
    ) -> None:
        self.context_tokens = context_tokens
        self._place = place
        self._prompt_tokens = prompt_tokens
        self._asked = asked
        self._left = False

    async def step(
        self,
        context: Sequence[TokenId],
        pick: DraftSampler,
        *,
        ahead: Sequence[TokenId] = (),
    ) -> list[DraftToken]:
        guesses: asyncio.Future[list[DraftToken]] = asyncio.get_running_loop().create_future()
        position = len(context) - self._prompt_tokens
        ahead = ahead[: max(0, self.context_tokens - len(context))]
        self._asked.put(Step(self._place, context, ahead, position, pick, guesses))
        return await guesses

    def leave(self) -> None:
        if not self._left:
            self._left = True
            self._place.taken = False
