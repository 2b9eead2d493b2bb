"""The gateway's Engine at the edge: every job is a session at the verifier, with a draft model.

Clients see the verifier's model; the draft model only decides how fast it answers.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import Final

import numpy as np

from edge_agent.answer import EdgeAnswer, Emit
from edge_agent.draft import cross_vocabulary
from edge_agent.draft.drafter import CannotDraft, Drafter, DraftSlot, step_sampler
from edge_agent.draft.target_tokenizer import TargetTokenizer
from edge_agent.draft_grammars import DraftGrammar
from edge_agent.driver import DraftModel, Driver
from edge_agent.link.verifiers import Verifiers
from edge_agent.metrics import EdgeMetrics
from edge_agent.observer import AnswerObserver
from edge_agent.proposals import OncePerPrompt, ProposalFinder
from edge_agent.settings import EdgeSettings
from gateway.channel import Channel, as_generator
from gateway.errors import EngineFault, InvalidRequest, NotFound, Unavailable
from gateway.ports import Delta, Facts, Job, TenantOwner, opening
from gateway.tenants import salted
from speculation.draft_machine import DraftMachine
from speculation.draft_policy import StreamPolicy
from speculation.errors import InvalidSetting
from speculation.judges import JUDGES
from speculation.model_facts import ModelFacts
from speculation.request_names import SALT

MAX_DELTAS: Final = 16
"""If more than this many Deltas wait for a slow client, the link waits too."""


class EdgeEngine:
    def __init__(
        self,
        verifiers: Verifiers,
        drafter: Drafter,
        settings: EdgeSettings,
        metrics: EdgeMetrics,
        pairing: TargetTokenizer,
    ) -> None:
        self._verifiers = verifiers
        self._drafter = drafter
        self._settings = settings
        self._judge = JUDGES[settings.judge]
        self._metrics = metrics
        self._pairing = pairing
        self._proposals = ProposalFinder(settings, pairing)
        self._translated = OncePerPrompt[list[int]]()

    async def facts(self) -> Facts:
        facts = await self._verifiers.facts()
        if self._settings.judge not in facts.judges:
            raise EngineFault(f"the verifier does not judge `{self._settings.judge}`")
        if not self._judge.takes_any_draft and self._pairing.relation == "different":
            raise EngineFault(
                f"judge: `{self._settings.judge}` needs a draft model with the target's"
                " vocabulary"
            )
        return Facts.of(facts)

    def generate(self, job: Job) -> AsyncGenerator[Delta]:
        channel = Channel[Delta](MAX_DELTAS)
        return as_generator(partial(self._run, job, channel.send), channel)

    async def _run(self, job: Job, emit: Emit) -> None:
        facts = (await self._verifiers.facts(job.identity)).identified(job.identity)
        if facts is None:
            raise Unavailable("the verifier is another one since the prompt was read")
        await self._verifiers.awake()
        taken = list[DraftSlot]()
        try:
            answer = await self._answer(job, facts, taken)
            await answer.run(emit)
        except InvalidSetting as error:
            raise InvalidRequest(str(error), param=error.name) from error
        except (NotFound, Unavailable, EngineFault):
            self._verifiers.forget()
            raise
        finally:
            for slot in taken:
                slot.leave()

    async def _slot(self, job: Job, taken: list[DraftSlot]) -> DraftSlot | None:
        """Take a slot, if one is free and the relation of the two vocabularies is known."""
        own, translation = job.prompt, self._pairing.translation
        if translation is not None and self._judge.takes_any_draft:
            own = tuple(await self._translated.of(job.prompt, translation.prompt))
        elif self._pairing.relation not in ("identical", "padded"):
            return None
        if (slot := self._drafter.take(own, job.owner)) is None:
            return None
        taken.append(slot)
        if translation is None:
            return slot
        return cross_vocabulary.CrossVocabularySlot(slot, translation, len(job.prompt), own)

    async def _answer(self, job: Job, facts: ModelFacts, taken: list[DraftSlot]) -> EdgeAnswer:
        """Return an answer that is yet to run. taken: gets its slot, also one that it takes
        later. Raises InvalidSetting, even without a slot."""
        settings, is_late = self._settings, self._drafter.is_late
        slot = None if is_late else await self._slot(job, taken)
        fill = settings.fill if slot else "auto"  # an answer with `never` would not end
        salt = None
        if job.owner and settings.separates_prefixes:
            salt = salted(job.owner.identity, job.extras.get(SALT))
        request = opening(job, facts, judge=settings.judge, fill=fill, salt=salt)
        proposals = await self._proposals.find(request, job, facts)
        request = proposals.request
        chance = np.random.default_rng()  # independent of other answers and of the verifier
        half = self._judge.edge(request, iter(chance.random, None))
        mask = DraftGrammar(proposals.grammar).mask if proposals.grammar else None
        sampler = partial(step_sampler, request, facts, half.sampler, mask=mask)

        def made(slot: DraftSlot | None) -> DraftModel | None:
            translated = self._pairing.translation is not None
            own = sampler(facts.vocabulary_size if translated else self._pairing.draft_tokens)
            return DraftModel(slot, own, request.prompt) if slot else None

        async def late() -> DraftModel:
            await self._drafter.wake()
            if (model := made(await self._slot(job, taken))) is None:
                raise CannotDraft("no slot of the draft model is free")
            return model

        model = made(slot)
        sessions = self._verifiers.answer(request.identity, job.span, job.prompt, salt)
        may_pause = request.fill != "never"
        machine = DraftMachine(
            request,
            StreamPolicy(may_pause=may_pause),
            facts.limits,
            half,
            rtt_s=lambda: sessions.verifier.rtt_s,
            drafts=slot is not None,
            lookup=proposals.proposer,
            speedups=(lambda: sessions.verifier.speedups) if may_pause else None,
            vocabulary_size=facts.vocabulary_size,
        )
        joining = late if is_late else None
        driver = Driver(machine, sessions, model, self._metrics, joining)
        observer = AnswerObserver(machine, sessions, time.monotonic) if job.watched else None
        return EdgeAnswer(job, proposals, machine, driver, observer, self._metrics)

    async def forget(self, owner: TenantOwner) -> None:
        """Forget the answers that an owner got, here and at the verifiers. Raises ApiError if a
        verifier does not."""
        self._proposals.answer_caches.empty(owner)
        salt = salted(owner.identity) if self._settings.separates_prefixes else None
        await self._verifiers.forget_answers(salt)

    async def prepare(self) -> None:
        """Do before the first answer what would hold up others. Raises ApiError."""
        await self._proposals.prepare()

    async def close(self) -> None:
        """Stop everything that the engine has started."""
        await self._proposals.close()
