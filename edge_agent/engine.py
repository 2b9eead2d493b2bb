"""The gateway's Engine at the edge: every job is a session at the verifier, with a draft model.

The model that clients see is the verifier's; the draft model only decides how fast it answers.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Protocol

import numpy as np

from edge_agent.as_generator import as_generator
from edge_agent.deltas import Deltas, Emit
from edge_agent.draft_model.drafter import Drafter, DraftSlot
from edge_agent.draft_model.foreign import slot as foreign_slot
from edge_agent.draft_model.foreign.translation import Translation
from edge_agent.driver import DraftModel, Driver, Sessions
from edge_agent.grammars import DraftGrammar, EdgeGrammars, within
from edge_agent.metrics import EdgeMetrics
from edge_agent.past_answers import PastAnswersByOwner
from edge_agent.predictions import with_own_drafts
from edge_agent.step_sampler import step_sampler
from edge_agent.trace import WatchedMachine
from gateway.errors import EngineFault, InvalidRequest, NotFound, Unavailable
from gateway.ports import Delta, Facts, Job
from gateway.tracing import Span
from models.grammars.constraint import NAME
from models.grammars.grammar import Grammar
from models.tokenizing.tokenizer import Tokenizer
from models.tokenizing.vocabulary import Relation, Vocabulary
from speculation.drafting.machine import DraftMachine
from speculation.drafting.outcome import DraftCounts
from speculation.drafting.policy import DraftPolicy, DraftSettings, StreamPolicy
from speculation.proposing.prompt_lookup import PromptLookup
from speculation.proposing.proposer import Proposer
from speculation.protocol.errors import InvalidSetting
from speculation.protocol.messages import Fill, Judge, Limits, ModelFacts, Open, Totals
from speculation.protocol.opening import opening

_OTHER_VOCABULARY: Final = (
    "judge: `separate` needs a draft model with the target's vocabulary; `coupled` takes any"
)


class Route(Sessions, Protocol):
    """What edge_agent.link.failover.Failover does."""

    @property
    def rtt_s(self) -> float:
        """The round trip to the verifier of the session that was opened last."""

    @property
    def verifier(self) -> int:
        """That verifier's place in the edge's list, from 0."""

    @property
    def reopened(self) -> int:
        """How often the answer went on in another session."""


class Verifiers(Protocol):
    """What edge_agent.link.verifiers.Verifiers does."""

    async def facts(self) -> ModelFacts: ...
    def answer(self, span: Span) -> Route: ...
    def forget(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Speculation:
    """How this edge speculates."""

    judge: Judge = "coupled"
    fill: Fill = "auto"
    drafting: DraftSettings = field(default_factory=DraftSettings)
    lookup: bool = True
    """Whether tokens are also proposed by prompt lookup; only in `coupled`."""

    grammars: bool = True
    """Whether drafts keep to the grammar of an answer that has one; only in `coupled`."""

    verifier_drafts: bool = True
    """Whether the verifier proposes draft tokens too, where it has none of the edge's; only in
    `coupled` with fill `auto`."""

    policy: DraftPolicy | None = None
    """What replaces StreamPolicy, as where a published system is measured."""

    past_answers_tokens: int = 0
    """Tokens of past answers kept for each owner of answers; only with `verifier_drafts`."""


class Pairing(Protocol):
    """What edge_agent.target_tokenizer.TargetTokenizer knows."""

    @property
    def relation(self) -> Relation | None: ...
    @property
    def translation(self) -> Translation | None: ...
    async def __call__(self) -> Tokenizer: ...


class EdgeEngine:
    """vocabulary: the draft model's; None without one."""

    def __init__(
        self,
        verifiers: Verifiers,
        drafter: Drafter,
        speculation: Speculation,
        metrics: EdgeMetrics,
        pairing: Pairing,
        vocabulary: Vocabulary | None,
    ) -> None:
        self._verifiers = verifiers
        self._drafter = drafter
        self._speculation = speculation
        self._metrics = metrics
        self._pairing = pairing
        self._draft_tokens = len(vocabulary.pieces) if vocabulary else 0
        self._grammars = EdgeGrammars()
        self._past = PastAnswersByOwner(speculation.past_answers_tokens)
        self._unused = 0  # DraftingSession.unused of the session that ended last

    async def facts(self) -> Facts:
        facts = await self._verifiers.facts()
        if self._speculation.judge not in facts.judges:
            raise EngineFault(f"the verifier does not judge `{self._speculation.judge}`")
        if self._speculation.judge == "separate" and self._pairing.relation == "different":
            raise EngineFault(_OTHER_VOCABULARY)
        return Facts.of(facts)

    async def generate(self, job: Job) -> AsyncGenerator[Delta]:
        facts = await self._verifiers.facts()
        slot = self._slot(job)
        try:
            deltas: AsyncGenerator[Delta] = as_generator(partial(self._run, job, facts, slot))
            async with aclosing(deltas):
                async for delta in deltas:
                    yield delta
        except (NotFound, Unavailable):
            self._verifiers.forget()
            raise
        finally:
            if slot is not None:
                slot.leave()

    def _slot(self, job: Job) -> DraftSlot | None:
        """Take a slot, once it is known how the draft model's vocabulary is related."""
        pairing = self._pairing
        if pairing.relation in ("identical", "padded"):
            return self._drafter.take(job.prompt)
        if pairing.translation is None:
            return None
        return foreign_slot.take(self._drafter, pairing.translation, job.prompt)

    async def _run(
        self, job: Job, facts: ModelFacts, slot: DraftSlot | None, emit: Emit
    ) -> None:
        chance = np.random.default_rng()  # independent of other sessions and of the verifier
        try:
            request = self._open(job, facts, slot)
            grammar = await self._grammar(request)
            mask = DraftGrammar(grammar).mask if grammar else None
            translated = self._pairing.translation is not None
            drawn = facts.vocabulary_size if translated else self._draft_tokens
            sampler = step_sampler(request, facts, chance, drawn, mask)
        except InvalidSetting as error:
            raise InvalidRequest(str(error), param=error.name) from error
        if self._speculation.verifier_drafts:
            request = await with_own_drafts(request, job, self._pairing)
        predicted, drafts = request.predicted, request.own_drafts
        past = self._past.of(job.owner, facts.vocabulary) if drafts else None
        if past is not None and not predicted:
            request = replace(request, predicted=past.to(request.prompt))
        proposer = within(grammar, self._lookup(request))
        route = self._verifiers.answer(job.span)
        make: Callable[..., DraftMachine] = DraftMachine
        if job.watched:
            make = partial(WatchedMachine, clock=time.monotonic, link=route)
        machine = self._machine(make, request, facts.limits, slot, chance, route, proposer)
        deltas = Deltas(emit, machine, predicted)
        model = DraftModel(slot, sampler, job.prompt) if slot else None
        driver = Driver(machine, route, model, self._metrics)
        try:
            finish = await deltas.watch(driver.run(deltas.committed))
        finally:
            if past is not None:
                past.add(request.prompt, machine.session.committed)
        self._unused = machine.session.unused
        self._count(machine.counts, finish.totals)
        await deltas.finished(finish, logprobs=job.top_logprobs is not None)

    def _count(self, counts: DraftCounts, totals: Totals) -> None:
        accepted = totals.accepted - totals.own
        self._metrics.drafted.inc(counts.drafted)
        self._metrics.looked_up.inc(counts.looked_up)
        self._metrics.stale.inc(counts.stale_steps)
        self._metrics.accepted.inc(accepted)
        self._metrics.verifiers_own.inc(totals.own)
        self._metrics.wasted.inc(max(0, counts.drafted + counts.looked_up - accepted))

    async def _grammar(self, request: Open) -> Grammar | None:
        """Return the grammar that the drafts keep to."""
        how, asked = self._speculation, NAME in request.sampling.extras
        if not (asked and how.grammars and request.judge == "coupled"):
            return None
        return await self._grammars.compile(request, await self._pairing())

    async def close(self) -> None:
        """End what the engine started."""
        await self._grammars.close()

    def _lookup(self, request: Open) -> PromptLookup | None:
        looks_up = self._speculation.lookup and request.judge == "coupled"
        return PromptLookup(request.prompt) if looks_up else None

    def _machine(
        self,
        make: Callable[..., DraftMachine],
        request: Open,
        limits: Limits,
        slot: DraftSlot | None,
        chance: np.random.Generator,
        route: Route,
        proposer: Proposer | None,
    ) -> DraftMachine:
        how = self._speculation
        return make(
            request,
            how.policy or StreamPolicy(how.drafting, may_rest=request.fill != "never"),
            limits,
            rtt_s=lambda: route.rtt_s,
            u=iter(chance.random, None),
            readable_tokens=slot.context_tokens - len(request.prompt) if slot else 0,
            lookup=proposer,
            unused=self._unused,
        )

    def _open(self, job: Job, facts: ModelFacts, slot: DraftSlot | None) -> Open:
        how = self._speculation
        reaches_end = slot and len(job.prompt) + job.max_tokens <= slot.context_tokens
        fill = how.fill if reaches_end else "auto"  # `never` would not end
        return opening(job, facts, judge=how.judge, fill=fill)
