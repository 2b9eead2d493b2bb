"""Makes the gateway's Deltas of one answer from what is committed."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace

from picospec.edge_agent.observer import LOOK_S, AnswerObserver
from picospec.edge_agent.statistics import with_commit, with_prediction, with_totals
from picospec.gateway.beside import alongside
from picospec.gateway.ports import Delta, Statistics
from picospec.speculation.drafting.session import DraftingSession
from picospec.speculation.proposing.prediction import Prediction
from picospec.speculation.protocol.messages import Commit, Finish, TokenId

Emit = Callable[[Delta], Awaitable[None]]


class Deltas:
    """session: the edge's record of the answer. observer: set if the client watches it.
    predicted: the tokens that the client expects in it."""

    def __init__(
        self,
        emit: Emit,
        session: DraftingSession,
        predicted: Sequence[TokenId],
        observer: AnswerObserver | None = None,
    ) -> None:
        self._statistics = Statistics()
        self._emit = emit
        self._untold: deque[Delta] = deque()
        self._session = session
        self._prediction = Prediction(predicted) if predicted else None
        self._observer = observer

    async def committed(self, commit: Commit) -> None:
        """Emit tokens that were not known before."""
        self._statistics = with_commit(self._statistics, commit)
        if self._prediction is not None:
            self._statistics = with_prediction(
                self._statistics, self._prediction, self._session.committed
            )
        delta = Delta(commit.tokens, commit.logprobs, statistics=self._statistics)
        if (observer := self._observer) is not None:
            origins, events = observer.origins(commit), observer.take()
            delta = replace(delta, origins=origins, events=events)
        await self._tell(delta)

    async def finished(self, finish: Finish, *, logprobs: bool) -> None:
        """Emit the end of the answer."""
        self._statistics = with_totals(self._statistics, finish.totals)
        await self._tell(Delta((), () if logprobs else None, finish.reason, self._statistics))

    async def _tell(self, delta: Delta) -> None:
        """Emit a Delta, after one whose emission was cancelled: a session may be lost while a
        slow client keeps its tokens waiting."""
        self._untold.append(delta)
        while self._untold:
            await self._emit(self._untold[0])
            self._untold.popleft()

    async def watch(self, answer: Coroutine[None, None, Finish]) -> Finish:
        """Await the answer, and emit what happens meanwhile, if its client watches it."""
        if (observer := self._observer) is None:
            return await answer
        return await alongside(self._look(observer), answer)

    async def _look(self, observer: AnswerObserver) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if events := observer.look(time.monotonic()):
                await self._emit(Delta((), events=events, statistics=self._statistics))
