"""Runs one DraftMachine: it awaits the draft model and the link, and decides nothing.

Three tasks run concurrently: one drafts, one sends, one receives. The machine is called from
the event loop alone, and never across an `await`. A lost session is followed by another one, at
any verifier; the machine and its draft model go on meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass

import structlog

from edge_agent.draft.drafter import CannotDraft, DraftSlot, StepSampler
from edge_agent.link.session import EdgeSession
from edge_agent.link.verifiers import AnswerSessions
from edge_agent.metrics import EdgeMetrics
from gateway.background_work import running_alongside
from gateway.errors import ApiError, EngineFault
from speculation.draft_machine import DraftMachine, DraftStep, Outcome
from speculation.errors import RemoteProtocolError
from speculation.messages import Commit, Finish
from speculation.model_facts import TokenId

OnCommit = Callable[[Commit], Awaitable[None]]
"""Receives each Commit of tokens that were not known before."""


@dataclass(frozen=True, slots=True)
class DraftModel:
    """The slot, sampler and prompt that make one session's steps."""

    slot: DraftSlot
    sampler: StepSampler
    prompt: tuple[TokenId, ...]


LateModel = Callable[[], Awaitable[DraftModel]]
"""Returns a draft model once it is loaded. Raises CannotDraft."""


class Driver:
    """model: None if no slot was free; then the machine asks for no steps. late: returns the
    model once it is loaded, if it was not when the answer began."""

    def __init__(
        self,
        machine: DraftMachine,
        sessions: AnswerSessions,
        model: DraftModel | None,
        metrics: EdgeMetrics,
        late: LateModel | None = None,
    ) -> None:
        self._machine = machine
        self._sessions = sessions
        self._session: EdgeSession
        self._model = model
        self._metrics = metrics
        self._late = late
        self._changed = asyncio.Event()

    async def run(self, on_commit: OnCommit) -> Finish:
        """Run the answer to its end; `on_commit` gets the committed tokens in order.

        Raises gateway.errors.ApiError. Cancel-safe: the session is ended at the verifier, and
        no task is left behind.
        """
        self._open()
        async with running_alongside(
            self._draft(), *([self._join(self._late)] if self._late else ())
        ):
            return await self._follow(on_commit)

    def _open(self) -> None:
        """Open a session for the rest of the answer; drafts go to this session from now on."""
        self._session = self._sessions.open(self._machine.opening())
        self._changed.set()

    async def _follow(self, on_commit: OnCommit) -> Finish:
        """Follow one session after another until the answer is complete."""
        while True:
            try:
                async with running_alongside(self._session.post()):
                    return await self._receive(on_commit)
            except ApiError as error:
                if (finish := self._machine.lost()) is not None:
                    return finish
                await self._sessions.again(self._session, error)
            self._open()

    async def _receive(self, on_commit: OnCommit) -> Finish:
        """Take in one session's messages, up to its end."""
        async with aclosing(self._session.events()) as events:
            async for message in events:
                try:
                    outcome = self._machine.received(message)
                except RemoteProtocolError as error:
                    raise EngineFault(f"the verifier broke the protocol: {error}") from error
                self._send(outcome)
                self._changed.set()  # the draft model need not wait for the client
                if outcome.commit is not None:
                    await on_commit(outcome.commit)
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
            self._machine.stop_drafting()
        else:
            now = time.monotonic()
            self._metrics.step_s.observe(now - step.asked_at)
            self._machine.drafted(step, tokens, now)

    async def _join(self, late: LateModel) -> None:
        """Draft from when the draft model is there, if it comes."""
        with suppress(CannotDraft):  # the log has the reason already
            self._model = await late()
            self._machine.start_drafting()
            self._changed.set()

    def _send(self, outcome: Outcome) -> None:
        for message in outcome.send:
            self._session.send(message)
