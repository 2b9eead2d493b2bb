"""The gateway's Engine at the edge: every job is a session at the verifier, with a draft model.

The model that clients see is the verifier's; the draft model only decides how fast it speaks.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import msgspec
import numpy as np

from edge_agent import pipeline
from edge_agent.as_generator import as_generator as pulled
from edge_agent.draft_model.drafter import Drafter
from edge_agent.draft_model.drafter import DraftSlot as Seat
from edge_agent.metrics import EdgeMetrics
from edge_agent.pace import Pace
from edge_agent.pipeline import Pipeline
from edge_agent.statistics import Tally
from edge_agent.steps import Guesser
from gateway.errors import EngineFault, NotFound, Unavailable
from gateway.ports import Delta, Facts, Job, TokenLogprob
from speculation.drafting.policy import DraftSettings
from speculation.drafting.session import DraftingSession
from speculation.proposing.prompt_lookup import Lookup
from speculation.protocol.messages import (
    Commit,
    Fill,
    Judge,
    Limits,
    ModelFacts,
    Open,
    Sampling,
)
from speculation.sampling import draft_sampler as guessing

Chance = Callable[[], np.random.Generator]
Emit = Callable[[Delta], Awaitable[None]]
MakePace = Callable[[DraftSettings, Limits, Callable[[], float]], Pace]


class Uplink(Protocol):
    @property
    def rtt_s(self) -> float: ...

    async def facts(self) -> ModelFacts:
        """Raises gateway.errors.Unavailable or EngineFault."""
        ...

    def open(self, request: Open) -> pipeline.Link: ...

    def forget(self) -> None:
        """The facts may have changed."""
        ...


@dataclass(frozen=True, slots=True)
class Policy:
    """How this edge speculates."""

    judge: Judge = "coupled"
    fill: Fill = "auto"
    pacing: DraftSettings = field(default_factory=DraftSettings)
    lookup: bool = True
    """DraftToken also what followed when the same was said before; only in `coupled`."""


class EdgeEngine:
    """vocabulary: the draft model's fingerprint. chance: a fresh generator for each session,
    independent of the verifier's."""

    def __init__(
        self,
        uplink: Uplink,
        drafter: Drafter,
        policy: Policy,
        metrics: EdgeMetrics,
        *,
        vocabulary: str,
        make_pace: MakePace = Pace,
        chance: Chance = np.random.default_rng,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._uplink = uplink
        self._drafter = drafter
        self._policy = policy
        self._metrics = metrics
        self._vocabulary = vocabulary
        self._make_pace = make_pace
        self._chance = chance
        self._clock = clock
        self._unused = 0  # DraftingSession.unused, of the session that ended last

    async def facts(self) -> Facts:
        facts = await self._uplink.facts()
        if self._policy.judge not in facts.judges:
            raise EngineFault(f"the verifier does not judge `{self._policy.judge}`")
        return Facts(
            facts.model,
            facts.context_tokens,
            frozenset(facts.stop_tokens),
            facts.vocabulary_size,
            frozenset(facts.features),
        )

    async def generate(self, job: Job) -> AsyncGenerator[Delta]:
        facts = await self._uplink.facts()
        seat = self._drafter.take(job.prompt)
        try:
            deltas: AsyncGenerator[Delta] = pulled(partial(self._run, job, facts, seat))
            async with aclosing(deltas):
                async for delta in deltas:
                    yield delta
        except (NotFound, Unavailable):
            self._uplink.forget()
            raise
        finally:
            if seat is not None:
                seat.leave()

    async def _run(self, job: Job, facts: ModelFacts, seat: Seat | None, emit: Emit) -> None:
        tally = Tally()

        async def committed(commit: Commit) -> None:
            tally.take_in(commit)
            await emit(Delta(commit.tokens, _logprobs(commit), statistics=tally.so_far()))

        session = DraftingSession(
            max_tokens=job.max_tokens, stop_tokens=facts.stop_tokens, unused=self._unused
        )
        running = self._pipeline(job, facts, seat, session)
        finish = await running.run(committed)
        self._unused = session.unused
        statistics = tally.finished(finish.totals)
        self._metrics.drafted.inc(running.steps.drafted)
        self._metrics.looked_up.inc(running.steps.looked_up)
        self._metrics.accepted.inc(statistics.accepted_tokens)
        guesses = running.steps.drafted + running.steps.looked_up
        self._metrics.wasted.inc(max(0, guesses - statistics.accepted_tokens))
        await emit(Delta((), _no_logprobs(job), finish.reason, statistics))

    def _pipeline(
        self, job: Job, facts: ModelFacts, seat: Seat | None, session: DraftingSession
    ) -> Pipeline:
        chance = self._chance()
        request = self._open(job, facts, seat)
        pick = self._pick(job, request, chance)
        return Pipeline(
            session,
            self._uplink.open(request),
            None if seat is None else Guesser(seat, pick, job.prompt),
            self._make_pace(
                replace(self._policy.pacing, rests=request.fill != "never"),
                facts.limits,
                lambda: self._uplink.rtt_s,
            ),
            self._metrics,
            uniforms=_uniforms(chance),
            lookup=self._lookup(job),
            separate=request.judge == "separate",
            clock=self._clock,
        )

    def _open(self, job: Job, facts: ModelFacts, seat: Seat | None) -> Open:
        told = job.sampling
        return Open(
            model=facts.model,
            vocabulary=self._vocabulary,
            prompt=job.prompt,
            sampling=Sampling(
                temperature=told.temperature,
                min_p=told.min_p,
                top_k=told.top_k,
                top_p=told.top_p,
                extras={k: msgspec.Raw(msgspec.json.encode(v)) for k, v in job.extras.items()},
            ),
            seed=job.seed,
            max_tokens=job.max_tokens,
            stop_tokens=tuple(facts.stop_tokens),
            judge=self._policy.judge,
            fill=self._fill(job, seat),
            top_logprobs=job.top_logprobs,
        )

    def _fill(self, job: Job, seat: Seat | None) -> Fill:
        """`never` would wait for ever where the draft model cannot reach the end."""
        reaches = seat and len(job.prompt) + job.max_tokens <= seat.context_tokens
        return self._policy.fill if reaches else "auto"

    def _lookup(self, job: Job) -> Lookup | None:
        if self._policy.lookup and self._policy.judge == "coupled":
            return Lookup(job.prompt)
        return None

    def _pick(
        self, job: Job, request: Open, chance: np.random.Generator
    ) -> guessing.DraftSampler:
        if request.judge == "separate":
            return guessing.separate(request.sampling, chance.random)
        return guessing.coupled(request.sampling, job.seed, len(job.prompt))


def _uniforms(chance: np.random.Generator) -> Iterator[float]:
    while True:
        yield chance.random()


def _logprobs(commit: Commit) -> tuple[TokenLogprob, ...] | None:
    if commit.logprobs is None:
        return None
    return tuple(TokenLogprob(said.logprob, said.top) for said in commit.logprobs)


def _no_logprobs(job: Job) -> tuple[TokenLogprob, ...] | None:
    return None if job.top_logprobs is None else ()
