"""What the pipeline asks of a draft model: a seat for each job, and a guess for each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from speculation.protocol.messages import TokenId
from speculation.sampling.draft_sampler import DraftSampler
from speculation.sampling.draft_token import DraftToken


class Seat(Protocol):
    """A job's place at the draft model."""

    context_tokens: int
    """The longest context that a step takes."""

    async def step(
        self,
        context: Sequence[TokenId],
        pick: DraftSampler,
        *,
        ahead: Sequence[TokenId] = (),
    ) -> list[DraftToken]:
        """Return the guess that follows `context`, which begins with the job's prompt and which
        the caller must not change.

        ahead: what may follow, read in the same step. For each of these tokens, in order, that
        is the guess, one more guess is returned. Raises CannotDraft. Cancelling it costs at
        most the pass that is running.
        """
        ...

    def leave(self) -> None:
        """Give the place back. Harmless when repeated."""
        ...


class Drafter(Protocol):
    def take(self, prompt: Sequence[TokenId]) -> Seat | None:
        """Return a free seat, if one can hold the prompt; the caller leaves it."""
        ...

    def close(self) -> None:
        """Free everything. Steps still running are cancelled."""
        ...


class CannotDraft(Exception):
    """The draft model failed at this step; the job goes on without drafts."""


def guessed_along(
    guess: Callable[[int], DraftToken], ahead: Sequence[TokenId]
) -> list[DraftToken]:
    """Return the guesses of a step that also read `ahead`: see Seat.step.

    guess(n): the one that follows the context and n tokens of `ahead`.
    """
    guesses: list[DraftToken] = []
    for n, read in enumerate([*ahead, None]):
        guesses.append(guess(n))
        if guesses[-1].token != read:
            break
    return guesses
