"""Runs one DraftMachine: it awaits the draft model and the link, and decides nothing.

Three tasks run concurrently: one drafts, one sends, one takes in what the verifier sends. The
machine is called from the event loop alone, and never across an `await`. A session that is lost
is followed by another one, at any verifier; the machine and its draft model go on meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

import structlog

from picospec.edge_agent.draft_model.drafter import CannotDraft, DraftSlot
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.edge_agent.step_sampler import StepSampler
from picospec.gateway.beside import alongside
from picospec.gateway.errors import ApiError, EngineFault
from picospec.speculation.drafting.machine import DraftMachine
from picospec.speculation.drafting.outcome import DraftStep, Outcome
from picospec.speculation.protocol.errors import RemoteProtocolError
from picospec.speculation.protocol.messages import Commit, Down, Finish, Open, Pushed, TokenId

Emit = Callable[[Commit], Awaitable[None]]
"""Takes a Commit of tokens that were not known before."""


class Link(Protocol):
    def events(self) -> AsyncGenerator[Down]:
        """Open the session and yield the verifier's messages up to Finish. Raises ApiError.
        Closing it ends the session at the verifier."""

    def send(self, message: Pushed) -> None:
        """Have a message sent; never waits."""

    async def post(self) -> None:
        """Send what `send` is given, until cancelled."""


class Route(Protocol):
    """Where the sessions of one answer are opened, one after another: what
    edge_agent.link.sessions.Sessions does."""

    @property
    def rtt_s(self) -> float:
        """The round trip to the verifier of the session that was opened last."""

    @property
    def verifier(self) -> int:
        """That verifier's place in the edge's list, from 0."""

    @property
    def reopened(self) -> int:
        """How often the answer went on at another verifier, or at one that was restarted."""

    def open(self, request: Open) -> Link:
        """Return a link that opens this session when its events are read."""

    async def again(self, error: ApiError) -> None:
        """The session ended with this error: wait until another may be opened for the rest of
        the answer, or raise the error."""


@dataclass(frozen=True, slots=True)
class DraftModel:
    """What one session's steps are made with."""

    slot: DraftSlot
    sampler: StepSampler
    prompt: tuple[TokenId, ...]


class Driver:
    """model: None where no slot was free; then the machine asks for no steps."""

    def __init__(
        self,
        machine: DraftMachine,
        route: Route,
        model: DraftModel | None,
        metrics: EdgeMetrics,
    ) -> None:
        self._machine = machine
        self._route = route
        self._link: Link
        self._model = model
        self._metrics = metrics
        self._changed = asyncio.Event()

    async def run(self, emit: Emit) -> Finish:
        """Run the answer to its end; `emit` gets the committed tokens in order.

        Raises gateway.errors.ApiError. Cancel-safe: the session is ended at the verifier, and
        no task is left behind.
        """
        self._open()
        return await alongside(self._draft(), self._follow_all(emit))

    def _open(self) -> None:
        """Open a session for the rest of the answer, to which drafts go from now on."""
        self._link = self._route.open(self._machine.opening())
        self._changed.set()

    async def _follow_all(self, emit: Emit) -> Finish:
        """Follow one session after another until the answer is complete."""
        while True:
            try:
                return await self._follow(emit)
            except ApiError as error:
                if (finish := self._machine.lost()) is not None:
                    return finish
                if not self._machine.may_reopen:
                    raise
                await self._route.again(error)
            self._open()

    async def _follow(self, emit: Emit) -> Finish:
        """Follow one session to its end."""
        return await alongside(self._link.post(), self._receive(emit))

    async def _receive(self, emit: Emit) -> Finish:
        async with aclosing(self._link.events()) as events:
            async for message in events:
                try:
                    outcome = self._machine.received(message)
                except RemoteProtocolError as error:
                    raise EngineFault(f"the verifier broke the protocol: {error}") from error
                self._send(outcome)
                self._changed.set()  # the draft model need not wait for the client
                if outcome.commit is not None:
                    await emit(outcome.commit)
                if outcome.finish is not None:
                    return outcome.finish
        raise EngineFault("the verifier's stream ended without a Finish")

    async def _draft(self) -> None:
        while True:
            outcome = self._machine.next(time.monotonic(), busy=False)
            self._send(outcome)
            if outcome.step is not None:
                await self._step(outcome.step)
            else:
                self._changed.clear()
                await self._changed.wait()

    async def _step(self, step: DraftStep) -> None:
        try:
            if (model := self._model) is None:
                raise CannotDraft("the session has no draft model")
            context = [*model.prompt, *step.context]
            tokens = await model.slot.step(context, model.sampler, ahead=step.ahead)
        except CannotDraft as error:
            structlog.get_logger("edge_agent").warning("cannot_draft", reason=str(error))
            self._machine.cannot_draft()
        else:
            now = time.monotonic()
            self._metrics.step_s.observe(now - step.asked_at)
            self._machine.drafted(step, tokens, now)

    def _send(self, outcome: Outcome) -> None:
        for message in outcome.send:
            self._link.send(message)
