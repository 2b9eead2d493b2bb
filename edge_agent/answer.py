"""Runs one answer of the edge, and makes Deltas of its committed tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from edge_agent.driver import Driver
from edge_agent.metrics import EdgeMetrics
from edge_agent.observer import REPORT_INTERVAL_S, AnswerObserver
from edge_agent.pace import Pace
from edge_agent.proposals import DraftSources
from gateway.background_work import running_alongside
from gateway.ports import Delta, Job, Statistics
from speculation.draft_machine import DraftMachine
from speculation.messages import Commit, Finish, Totals
from speculation.prediction import Prediction

Emit = Callable[[Delta], Awaitable[None]]


class EdgeAnswer:
    """driver: of the machine. observer: of the same; None if no client watches the answer."""

    def __init__(
        self,
        job: Job,
        proposals: DraftSources,
        machine: DraftMachine,
        driver: Driver,
        observer: AnswerObserver | None,
        metrics: EdgeMetrics,
    ) -> None:
        self._machine = machine
        self._job = job
        self._proposals = proposals
        self._driver = driver
        self._observer = observer
        self._metrics = metrics
        self._accepted_per_position: list[int] = []
        self._pace = Pace(time.monotonic)
        predicted = proposals.predicted
        self._prediction = Prediction(predicted) if predicted else None

    async def run(self, emit: Emit) -> None:
        """Run the answer to its end; `emit` gets its Deltas in order. Raises ApiError."""

        async def committed(commit: Commit) -> None:
            await emit(self._delta(commit))

        try:
            finish = await self._watched(emit, self._driver.run(committed))
        finally:
            self._machine.close()
            self._proposals.keep(self._machine.session.committed)
        self._count(finish)
        logprobs = None if self._job.top_logprobs is None else ()
        await emit(Delta((), logprobs, finish.reason, self._statistics(finish.totals)))

    def _delta(self, commit: Commit) -> Delta:
        """Return the Delta of newly committed tokens."""
        self._pace.committed(commit, self._machine.slowed)
        counts, accepted = self._accepted_per_position, commit.drafts
        counts += [0] * (accepted - len(counts))
        for position in range(accepted):
            counts[position] += 1
        if self._prediction is not None:
            self._prediction.follow(self._machine.session.committed)
        statistics = self._statistics(self._machine.tally.totals)
        delta = Delta(commit.tokens, commit.logprobs, statistics=statistics)
        if (observer := self._observer) is None:
            return delta
        return replace(delta, origins=observer.origins(commit), events=observer.take())

    def _statistics(self, totals: Totals) -> Statistics:
        prediction = self._prediction
        return Statistics(
            totals,
            tuple(self._accepted_per_position),
            prediction.accepted_tokens if prediction else 0,
            prediction.rejected_tokens if prediction else 0,
            self._machine.counts.cached_tokens,
        )

    async def _watched(self, emit: Emit, answer: Awaitable[Finish]) -> Finish:
        """Await the answer. If its client watches it, emit events meanwhile."""
        if (observer := self._observer) is None:
            return await answer
        async with running_alongside(self._emit_events(emit, observer)):
            return await answer

    async def _emit_events(self, emit: Emit, observer: AnswerObserver) -> None:
        while True:
            await asyncio.sleep(REPORT_INTERVAL_S)
            if events := observer.take_all(time.monotonic()):
                statistics = self._statistics(self._machine.tally.totals)
                await emit(Delta((), events=events, statistics=statistics))

    def _count(self, finish: Finish) -> None:
        counts, totals, metrics = self._machine.counts, finish.totals, self._metrics
        accepted = totals.accepted - totals.verifier_accepted
        metrics.drafted.inc(counts.drafted)
        metrics.looked_up.inc(counts.looked_up)
        metrics.stale.inc(counts.stale_steps)
        metrics.accepted.inc(accepted)
        metrics.verifier_accepted.inc(totals.verifier_accepted)
        metrics.passes.inc(totals.passes)
        metrics.committed.inc(len(self._machine.session.committed))
        metrics.answering_s.inc(self._pace.taken_s)
        metrics.alone_s.inc(self._pace.alone_s)
        metrics.wasted.inc(max(0, counts.drafted + counts.looked_up - accepted))
