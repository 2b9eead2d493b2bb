"""Joins a DraftingSession to a draft model and a link to the verifier.

Three halves run at once: one drafts, one sends, one takes in what the verifier says. All rules
live in the session and in speculation.pacing; this module only awaits.

What was said before is guessed again without a step, where that pays (speculation.lookup).

A step may end in a world that is not the one it began in: its guess is used only if the epoch
and the position are still the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

import structlog

from edge_agent.drafter import CannotDraft, Seat
from edge_agent.guessing import Pick
from edge_agent.metrics import EdgeMetrics
from edge_agent.pace import Pace
from gateway.errors import EngineFault
from speculation.branches import Growing
from speculation.drafting import DraftingSession
from speculation.errors import RemoteProtocolError
from speculation.guess import Guess
from speculation.lookup import Lookup
from speculation.messages import Commit, Down, Finish, Opened, Pushed, Refuse, TokenId

Emit = Callable[[Commit], Awaitable[None]]
"""Takes a Commit cut to the tokens that were not known before."""


class Link(Protocol):
    def events(self) -> AsyncGenerator[Down]:
        """Open the session and yield what the verifier says, until Finish. Raises ApiError."""
        ...

    def send(self, message: Pushed) -> None:
        """Have a message sent; never waits."""
        ...

    async def post(self) -> None:
        """Send what `send` is given, until cancelled."""
        ...

    async def cancel(self) -> None:
        """End the session at the verifier, if it has not ended."""
        ...


@dataclass(frozen=True, slots=True)
class Guesser:
    """What a session drafts with."""

    seat: Seat
    pick: Pick
    prompt: tuple[TokenId, ...]


class Pipeline:
    """One session. Without guesser and lookup nothing is drafted: the verifier fills in."""

    def __init__(
        self,
        session: DraftingSession,
        link: Link,
        guesser: Guesser | None,
        pace: Pace,
        metrics: EdgeMetrics,
        *,
        uniforms: Iterator[float],
        lookup: Lookup | None = None,
        separate: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.drafted = 0
        self.looked_up = 0
        self._session = session
        self._link = link
        self._guesser = guesser
        self._pace = pace
        self._metrics = metrics
        self._uniforms = uniforms
        self._lookup = lookup
        self._separate = separate
        self._clock = clock
        self._progress = asyncio.Event()

    async def run(self, emit: Emit) -> Finish:
        """Run the session to its end; `emit` gets the committed tokens in order.

        Raises gateway.errors.ApiError. Cancel-safe: the session is ended at the verifier, and
        no task is left behind.
        """
        try:
            async with asyncio.TaskGroup() as halves:
                others = [halves.create_task(up) for up in (self._link.post(), self._draft())]
                finish = await self._take_in(emit)
                for half in others:
                    half.cancel()
            return finish
        except BaseExceptionGroup as errors:
            raise _first(errors) from errors
        finally:
            await self._link.cancel()

    # --- down

    async def _take_in(self, emit: Emit) -> Finish:
        async with aclosing(self._link.events()) as events:
            async for message in events:
                match message:
                    case Opened(limits=limits):
                        self._pace.limits = limits
                    case Commit():
                        await self._commit(message, emit)
                    case Refuse():
                        self._refused(message)
                    case Finish():
                        return message
                self._progress.set()
        raise EngineFault("the verifier's stream ended without a Finish")

    async def _commit(self, commit: Commit, emit: Emit) -> None:
        if commit.start > 0:  # the first pass also read the prompt
            self._pace.passed(commit.pass_s)
        try:
            progress = self._session.receive(commit)
        except RemoteProtocolError as error:
            raise EngineFault(f"the verifier broke the protocol: {error}") from error
        self._progress.set()  # the draft model need not wait for the client
        if progress.broken:
            self._flush(drafting=self._drafting)  # a branch that was kept: no step need end
        if progress.tokens:
            await emit(_cut(commit, len(commit.tokens) - len(progress.tokens)))

    def _refused(self, refuse: Refuse) -> None:
        try:
            redraw = self._session.refused(refuse, self._uniforms)
        except RemoteProtocolError as error:
            raise EngineFault(f"the verifier broke the protocol: {error}") from error
        if redraw is not None:
            self._link.send(redraw)
        self._flush(drafting=True)

    # --- up

    async def _draft(self) -> None:
        while True:
            try:
                await self._draft_on()
            except CannotDraft as error:
                structlog.get_logger("edge_agent").warning("cannot_draft", reason=str(error))
                self._guesser = None

    async def _draft_on(self) -> None:
        """Do the next thing: extend the chain, send, grow a branch, or wait for news."""
        self._look_up()
        guesser = self._with_room
        if guesser and self._drafting:
            self._flush(drafting=True)
            await self._extend(guesser)
        elif self._flush(drafting=False):
            return  # what is away may make room for more
        elif guesser and (branch := self._branch(guesser)):
            await self._grow(branch, guesser)
        else:
            self._progress.clear()
            await self._progress.wait()

    def _look_up(self) -> None:
        if self._lookup is None:
            return
        times = self._pace.times if self._with_room else replace(self._pace.times, draft_s=inf)
        self.looked_up += self._lookup.draft(
            self._session, times, lambda: self._pace.may_look_up(self._session)
        )

    async def _extend(self, guesser: Guesser) -> None:
        session = self._session
        context = [*guesser.prompt, *session.guessed]
        made_for = session.epoch, len(context)
        guess, took_s = await self._step(guesser, context)
        if self._lookup is not None:
            self._lookup.stepped(*made_for, took_s, self._pace.times.draft_s)
        if made_for != (session.epoch, len(guesser.prompt) + self._position):
            self._metrics.stale.inc()
            return
        self._pace.drafted(*made_for, took_s)
        self.drafted += 1
        session.extend(guess)

    def _branch(self, guesser: Guesser) -> Growing | None:
        """The branch to grow, if one is worth it, unless it is longer than can be read."""
        branch = self._pace.branch(self._session)
        if branch and len(guesser.prompt) + branch.end < guesser.seat.context_tokens:
            return branch
        return None

    async def _grow(self, branch: Growing, guesser: Guesser) -> None:
        session, epoch = self._session, self._session.epoch
        context = [*guesser.prompt, *session.guessed_in(branch)]
        guess, _ = await self._step(guesser, context, branch=True)
        if not session.grow(branch, guess, epoch):
            self._metrics.stale.inc()
            return
        self.drafted += 1
        grown = not self._pace.may_grow(session, branch)
        if grown and self._pace.should_send(session, branch):
            self._link.send(session.branch_off(branch))
            self._metrics.branches.inc()

    async def _step(
        self, guesser: Guesser, context: list[TokenId], *, branch: bool = False
    ) -> tuple[Guess, float]:
        """Return what follows the context, and how many seconds that took."""
        begun = self._clock()
        guess = await guesser.seat.step(context, guesser.pick, branch=branch)
        took_s = self._clock() - begun
        self._metrics.step_s.observe(took_s)
        return guess, took_s

    @property
    def _with_room(self) -> Guesser | None:
        """The draft model, unless the text has grown longer than it can read."""
        guesser = self._guesser
        if guesser and len(guesser.prompt) + self._position < guesser.seat.context_tokens:
            return guesser
        return None

    @property
    def _drafting(self) -> bool:
        """Whether the draft model's next step is the chain's."""
        may_draft = self._session.may_extend and self._pace.may_draft(self._session)
        return may_draft and self._with_room is not None

    @property
    def _position(self) -> int:
        return len(self._session.committed) + len(self._session.chain)

    def _flush(self, *, drafting: bool) -> bool:
        """Send what waits, if it is time; tell whether anything was."""
        due = self._pace.should_flush(self._session, drafting=drafting, separate=self._separate)
        draft = self._session.flush(pauses=not drafting) if due else None
        if draft is not None:
            self._link.send(draft)
        return draft is not None


def _cut(commit: Commit, known: int) -> Commit:
    """Return the Commit without its first `known` tokens."""
    if known == 0:
        return commit
    return replace(
        commit,
        start=commit.start + known,
        tokens=commit.tokens[known:],
        accepted=max(0, commit.accepted - known),
        logprobs=commit.logprobs and commit.logprobs[known:],
    )


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
