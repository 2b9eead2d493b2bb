"""What the draft model does for one session: it extends the chain.

What was said before is guessed again without a step, where that pays (speculation.proposing.prompt_lookup).

A step may end in a world that is not the one it began in: its guess is used only if the epoch
and the position are still the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf

from edge_agent.draft_model.drafter import CannotDraft
from edge_agent.draft_model.drafter import DraftSlot as Seat
from edge_agent.metrics import EdgeMetrics
from edge_agent.pace import Pace
from speculation.drafting.session import DraftingSession
from speculation.proposing.prompt_lookup import Lookup, take
from speculation.protocol.messages import TokenId
from speculation.sampling.draft_sampler import DraftSampler
from speculation.sampling.draft_token import DraftToken


@dataclass(frozen=True, slots=True)
class Guesser:
    """What a session drafts with."""

    seat: Seat
    pick: DraftSampler
    prompt: tuple[TokenId, ...]


class Steps:
    """Without guesser and lookup nothing is guessed. clock: in seconds."""

    def __init__(
        self,
        session: DraftingSession,
        guesser: Guesser | None,
        pace: Pace,
        metrics: EdgeMetrics,
        *,
        lookup: Lookup | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.drafted = 0
        self.looked_up = 0
        self._session = session
        self._guesser = guesser
        self._pace = pace
        self._metrics = metrics
        self._lookup = lookup
        self._clock = clock
        self._read = (-1, 0)  # epoch, and up to where the draft model has read chain

    @property
    def due(self) -> bool:
        """Whether the chain is to be extended by a step."""
        session = self._session
        return session.may_extend and self._pace.may_draft(session) and self._reads(self._end)

    def look_up(self) -> None:
        """Extend the chain by what was said before, if it is time."""
        if self._lookup is None:
            return
        times = self._pace.times
        if not self._reads(self._end):
            times = replace(times, draft_s=inf)
        self.looked_up += self._lookup.draft(
            self._session, times, lambda: self._pace.may_look_up(self._session)
        )

    async def extend(self) -> None:
        """Extend the chain by a step. Raises CannotDraft.

        What followed when the chain's end was said before is read in the same step, if it is
        worth it: then there is a guess for each token that the draft model says too, and one.
        """
        session, guessed = self._session, self._session.guessed
        epoch, end = session.epoch, len(guessed)
        ahead = self._lookup.ahead(session, self._pace.times) if self._lookup else []
        guesses, took_s = await self._step(guessed, ahead)
        self._took(epoch, end, len(ahead), took_s)
        self._read = epoch, end + len(guesses) - 1
        if (epoch, end) != (session.epoch, self._end):
            self._metrics.stale.inc()
            return
        self.drafted += take(session, guesses, lambda: self._pace.may_look_up(session))

    def give_up(self) -> None:
        """Make no more steps."""
        self._guesser = None

    async def _step(
        self, guessed: Sequence[TokenId], ahead: Sequence[TokenId] = ()
    ) -> tuple[list[DraftToken], float]:
        """Return what follows prompt and guesses, and how many seconds that took."""
        guesser = self._guesser
        if guesser is None:
            raise CannotDraft("the session has no draft model")
        begun = self._clock()
        context = [*guesser.prompt, *guessed]
        guesses = await guesser.seat.step(context, guesser.pick, ahead=ahead)
        took_s = self._clock() - begun
        self._metrics.step_s.observe(took_s)
        return guesses, took_s

    def _took(self, epoch: int, end: int, ahead: int, took_s: float) -> None:
        """Learn from a step after `end` tokens. Those that went back or began tell nothing."""
        known_epoch, known = self._read
        more = ahead + max(0, end - known - 1)
        if epoch == known_epoch and more == 0:
            self._pace.drafted(took_s)
        elif epoch == known_epoch and self._lookup is not None:
            self._lookup.read(more, took_s, self._pace.times.draft_s)

    def _reads(self, end: int) -> bool:
        """Whether there is a draft model that can read the prompt and so many tokens."""
        guesser = self._guesser
        return guesser is not None and len(guesser.prompt) + end < guesser.seat.context_tokens

    @property
    def _end(self) -> int:
        return len(self._session.committed) + len(self._session.chain)
