"""Runs one answer of the edge, and makes Deltas of its committed tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from picospec.edge_agent.driver import DraftModel, Driver
from picospec.edge_agent.link.sessions import Sessions
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.edge_agent.observer import REPORT_INTERVAL_S, AnswerObserver
from picospec.edge_agent.proposing.proposals import Proposals
from picospec.gateway.beside import beside
from picospec.gateway.ports import Delta, Job, Statistics
from picospec.speculation.draft_machine import DraftMachine
from picospec.speculation.messages import Commit, Finish, TokenId, Totals
from picospec.speculation.prediction import Prediction

Emit = Callable[[Delta], Awaitable[None]]


class Answer:
    """model: None if no slot of the draft model was free."""

    def __init__(
        self,
        job: Job,
        proposals: Proposals,
        machine: DraftMachine,
        sessions: Sessions,
        model: DraftModel | None,
        metrics: EdgeMetrics,
    ) -> None:
        self.session = machine.session
        self._job = job
        self._proposals = proposals
        self._driver = Driver(machine, sessions, model, metrics)
        self._counts = machine.counts
        self._metrics = metrics
        self._statistics = Statistics()
        predicted = proposals.predicted
        self._prediction = Prediction(predicted) if predicted else None
        self._observer = AnswerObserver(machine, sessions) if job.watched else None

    async def run(self, emit: Emit) -> None:
        """Run the answer to its end; `emit` gets its Deltas in order. Raises ApiError."""

        async def committed(commit: Commit) -> None:
            await emit(self._delta(commit))

        try:
            finish = await self._watched(emit, self._driver.run(committed))
        finally:
            self._proposals.keep(self.session.committed)
        self._count(finish)
        self._statistics = _with_totals(self._statistics, finish.totals)
        logprobs = None if self._job.top_logprobs is None else ()
        await emit(Delta((), logprobs, finish.reason, self._statistics))

    def _delta(self, commit: Commit) -> Delta:
        """Return the Delta of newly committed tokens."""
        self._statistics = _with_commit(self._statistics, commit, self._counts.reused)
        if self._prediction is not None:
            text = self.session.committed
            self._statistics = _with_prediction(self._statistics, self._prediction, text)
        delta = Delta(commit.tokens, commit.logprobs, statistics=self._statistics)
        if (observer := self._observer) is None:
            return delta
        return replace(delta, origins=observer.origins(commit), events=observer.take())

    async def _watched(self, emit: Emit, answer: Awaitable[Finish]) -> Finish:
        """Await the answer. If its client watches it, emit events meanwhile."""
        if (observer := self._observer) is None:
            return await answer
        async with beside(self._emit_events(emit, observer)):
            return await answer

    async def _emit_events(self, emit: Emit, observer: AnswerObserver) -> None:
        while True:
            await asyncio.sleep(REPORT_INTERVAL_S)
            if events := observer.take_all(time.monotonic()):
                await emit(Delta((), events=events, statistics=self._statistics))

    def _count(self, finish: Finish) -> None:
        counts, totals, metrics = self._counts, finish.totals, self._metrics
        accepted = totals.accepted - totals.own
        metrics.drafted.inc(counts.drafted)
        metrics.looked_up.inc(counts.looked_up)
        metrics.stale.inc(counts.stale_steps)
        metrics.accepted.inc(accepted)
        metrics.verifiers_own.inc(totals.own)
        metrics.wasted.inc(max(0, counts.drafted + counts.looked_up - accepted))


def _with_commit(before: Statistics, commit: Commit, reused: int) -> Statistics:
    """Count one more Commit, which does not say how many draft tokens its pass judged. reused:
    see DraftCounts.

    Until the Finish, only passes with an accepted draft token count as having had any, and only
    accepted draft tokens count as judged.
    """
    counts, accepted = before.accepted_per_position, commit.drafts
    if accepted:
        more = [count + 1 for count in counts[:accepted]] + [1] * (accepted - len(counts))
        counts = (*more, *counts[accepted:])
    total = before.accepted_tokens + accepted
    return Statistics(
        target_passes=before.target_passes + 1,
        drafts=counts[0] if counts else 0,
        draft_tokens=total,
        accepted_tokens=total,
        accepted_per_position=counts,
        accepted_prediction_tokens=before.accepted_prediction_tokens,
        rejected_prediction_tokens=before.rejected_prediction_tokens,
        cached_tokens=reused,
    )


def _with_prediction(
    counted: Statistics, prediction: Prediction, committed: Sequence[TokenId]
) -> Statistics:
    """Add the accepted and rejected tokens of the client's prediction so far."""
    prediction.follow(committed)
    return replace(
        counted,
        accepted_prediction_tokens=prediction.accepted_tokens,
        rejected_prediction_tokens=prediction.rejected_tokens,
    )


def _with_totals(counted: Statistics, totals: Totals) -> Statistics:
    """Return the statistics of a finished job, whose totals the verifier has sent."""
    return replace(
        counted,
        target_passes=totals.passes,
        drafts=totals.passes - totals.filled,
        draft_tokens=totals.judged,
        accepted_tokens=totals.accepted,
    )
