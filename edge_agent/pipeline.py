"""Joins a DraftingSession to a draft model and a link to the verifier.

Three halves run at once: one drafts, one sends, one takes in what the verifier says. All rules
live in the session and in speculation.drafting.policy; this module only awaits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

import structlog

from edge_agent.draft_model.drafter import CannotDraft
from edge_agent.metrics import EdgeMetrics
from edge_agent.pace import Pace
from edge_agent.steps import Guesser, Steps
from gateway.errors import EngineFault
from speculation.drafting.session import DraftingSession
from speculation.proposing.prompt_lookup import Lookup
from speculation.protocol.errors import RemoteProtocolError
from speculation.protocol.messages import Commit, Down, Finish, Opened, Pushed, Reject

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
        self.steps = Steps(session, guesser, pace, metrics, lookup=lookup, clock=clock)
        self._session = session
        self._link = link
        self._pace = pace
        self._metrics = metrics
        self._uniforms = uniforms
        self._separate = separate
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
                    case Reject():
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
        if progress.tokens:
            await emit(_cut(commit, len(commit.tokens) - len(progress.tokens)))

    def _refused(self, reject: Reject) -> None:
        try:
            redraw = self._session.rejected(reject, self._uniforms)
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
                self.steps.give_up()

    async def _draft_on(self) -> None:
        """Do the next thing: extend the chain, send, or wait for news."""
        self.steps.look_up()
        if self.steps.due:
            self._flush(drafting=True)
            await self.steps.extend()
        elif self._flush(drafting=False):
            return  # what is away may make room for more
        else:
            self._progress.clear()
            await self._progress.wait()

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
