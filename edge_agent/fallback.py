"""Serves answers of another server, or of the draft model alone, while no verifier can be
reached.

A step of the draft model generates one token, drawn as a verifier draws it. So the answer is
the one that a verifier with this model would give, for the same seed and settings.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import structlog

from edge_agent.draft.drafter import CannotDraft, Drafter, DraftSlot
from edge_agent.draft_grammars import EdgeGrammars
from edge_agent.link.connection import Connection
from edge_agent.link.verifiers import Verifiers
from edge_agent.metrics import EdgeMetrics
from gateway.errors import ApiError, EngineFault, InvalidRequest, Overloaded, Unavailable
from gateway.ports import (
    HARMLESS,
    Delta,
    Facts,
    Job,
    Statistics,
    TenantOwner,
    TokenizerSource,
    opening,
)
from local_models.constraints import NAME
from local_models.errors import CannotCheck, GrammarFailed
from local_models.store import StoredModel
from local_models.tokenizer import Tokenizer
from local_models.tokenizer_file import tokenizer_file
from speculation.distributions import Logits, distribution, logprob_of
from speculation.draft_token import DraftSampler, DraftToken
from speculation.errors import InvalidSetting
from speculation.logit_settings import LOGIT_SETTINGS
from speculation.logits import Adjust, adjustment, in_turn
from speculation.messages import FinishReason, Open, TokenLogprob, Totals
from speculation.model_facts import Limits, ModelFacts, TokenId
from speculation.noise import noise_index
from speculation.request_names import STOPPING
from speculation.thinking_budget import BUDGET

FEATURES: Final = (*LOGIT_SETTINGS, *STOPPING, NAME, BUDGET)
"""OpenAI parameters served beyond Sampling: all those that an embedded target serves."""

FAILED: Final = "draft_model_failed"


class DraftEngine:
    """A gateway.ports.Engine over the draft model. facts: as a verifier would send them."""

    def __init__(self, facts: ModelFacts, drafter: Drafter, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._facts = facts
        self._drafter = drafter
        self._grammars = EdgeGrammars()

    @property
    def model(self) -> str:
        """The name of the model."""
        return self._facts.model

    async def facts(self) -> Facts:
        return Facts.of(self._facts)

    async def generate(self, job: Job) -> AsyncGenerator[Delta]:
        """Stream one choice. Raises Overloaded if all slots are taken."""
        try:
            request = opening(job, self._facts)
            mask = await self._mask(request, job.owner)
            size = self._facts.vocabulary_size
            adjust = in_turn(mask, adjustment(request, vocabulary_size=size))
        except InvalidSetting as error:
            raise InvalidRequest(str(error), param=error.name) from error
        slot = self._drafter.take(job.prompt, job.owner, whole=True)
        if slot is None:
            raise Overloaded("all slots of the draft model are taken; try again later")
        try:
            async for delta in _deltas(slot, _Sampler(request, size, adjust)):
                yield delta
        finally:
            slot.leave()

    def named(self, prefix: str) -> DraftEngine:
        """Return an engine whose model has a name with this prefix."""
        facts = msgspec.structs.replace(self._facts, model=prefix + self._facts.model)
        return DraftEngine(facts, self._drafter, self.tokenizer)

    async def close(self) -> None:
        """Stop everything that the engine has started."""
        await self._grammars.close()

    async def _mask(self, request: Open, owner: TenantOwner | None) -> Adjust | None:
        """Return the mask that bars the tokens that the request's grammar does not allow."""
        if NAME not in request.sampling.extras:
            return None
        try:
            grammar = await self._grammars.compile(request, self.tokenizer, owner)
        except CannotCheck as error:
            raise Overloaded(f"{error}; try again later") from error
        return grammar.begin().mask


@dataclass(slots=True)
class _Sampler:
    """A StepSampler that draws from the draft model's distribution as from a target's."""

    request: Open
    size: int
    adjust: Adjust | None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """The log-probabilities of the tokens drawn since the last call of `taken`."""

    failure: GrammarFailed | None = None
    """Set if no token could be drawn. It is not raised in the draft model's thread, because
    other answers' steps would fail with it."""

    def __call__(self, output: Sequence[TokenId]) -> DraftSampler:
        def pick(logits: Logits, position: int) -> DraftToken:
            request, own = self.request, logits[: self.size]
            try:
                adjusted = self.adjust(own, output[:position]) if self.adjust else own
            except GrammarFailed as error:
                self.failure = error
                return DraftToken(0, 0.0)
            at = noise_index(len(request.prompt), position)
            token = distribution(adjusted, request.sampling).picked(request.seed, at)
            if (most := request.top_logprobs) is not None:
                self.logprobs.append(logprob_of(own, token, most))
            return DraftToken(token, 1.0)

        return pick

    def taken(self) -> tuple[TokenLogprob, ...] | None:
        """Return the log-probabilities since the last call, None if they are not requested."""
        if self.request.top_logprobs is None:
            return None
        taken, self.logprobs = self.logprobs, []
        return tuple(taken)


async def _deltas(slot: DraftSlot, sampler: _Sampler) -> AsyncGenerator[Delta]:
    """Yield one token per step, and last how the answer ends. Raises Unavailable."""
    request, tokens = sampler.request, list[TokenId]()
    reason: FinishReason = "length"
    while len(tokens) < request.max_tokens and reason == "length":
        try:
            (drawn,) = await slot.step([*request.prompt, *tokens], sampler)
        except CannotDraft as error:
            raise Unavailable(f"the draft model failed: {error}", code=FAILED) from error
        if sampler.failure is not None:
            raise Unavailable(str(sampler.failure), code=FAILED) from sampler.failure
        tokens.append(drawn.token)
        counted = Statistics(Totals(len(tokens), filled=len(tokens)))
        yield Delta(
            (drawn.token,), sampler.taken(), statistics=counted, origins=(drawn.origin,)
        )
        if drawn.token in request.stop_tokens:
            reason = "stop"
    counted = Statistics(Totals(len(tokens), filled=len(tokens)))
    yield Delta((), sampler.taken(), reason, counted)


async def is_away(verifiers: Verifiers, target: TokenizerSource) -> bool:
    """Return True if no verifier can be reached. Asking them takes a round trip, but earlier
    knowledge may be old. Raises the error of a verifier that can be reached."""
    try:
        await verifiers.check()
        facts = await verifiers.facts()
        await target(facts.vocabulary)
    except Unavailable:
        return True
    return False


class DraftFallback:
    """A gateway.ports.Fallback. The draft model generates an answer from its first token to its
    last, or not at all: texts of two models are not joined."""

    name = "draft"
    is_elsewhere = False

    def __init__(self, engine: DraftEngine, metrics: EdgeMetrics) -> None:
        self.engine = engine
        self.alone = engine.named("draft:")
        """The same, for clients that ask for the draft model by itself."""

        self._metrics = metrics

    async def tokenizer(self, vocabulary: str) -> Tokenizer:
        return self.engine.tokenizer

    async def can_answer(self, path: str) -> bool:
        return True

    def count_answers(self, count: int) -> None:
        """Count answers that the fallback begins."""
        self._metrics.fallback_answers.inc(count)

    async def close(self) -> None:
        """Stop everything that the engines have started."""
        await self.engine.close()
        await self.alone.close()


_SERVER_PATHS: Final = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/models",
)  # fmt: skip
SERVER_S: Final = 3.0
"""The server of `fallback` must begin to answer for its models within this time."""


class ServerFallback:
    """A gateway.ports.Fallback. Another server answers by the proxy. Its `engine` is this
    object, which knows no more of the server's model than its name."""

    name = "server"
    is_elsewhere = True

    def __init__(self, model: str, connection: Connection, metrics: EdgeMetrics) -> None:
        self._model = model
        self._connection = connection
        self._metrics = metrics

    @property
    def engine(self) -> ServerFallback:
        return self

    async def facts(self) -> Facts:
        return Facts(self._model, 0, frozenset(), 0, frozenset((*FEATURES, *HARMLESS)))

    def generate(self, job: Job) -> AsyncGenerator[Delta]:
        raise EngineFault("another server answers")

    async def tokenizer(self, vocabulary: str) -> Tokenizer:
        raise Unavailable("no verifier can be reached, and another server's tokens are unknown")

    async def can_answer(self, path: str) -> bool:
        """Return True if the server serves this API and takes this edge's key."""
        if path not in _SERVER_PATHS:
            return False
        try:
            async with self._connection.stream("GET", "/v1/models", within_s=SERVER_S) as head:
                if head.status < 500 and head.status not in (401, 403):
                    return True
                reason = f"it answers {head.status}"
        except (ApiError, TimeoutError) as error:
            reason = str(error)
        log = structlog.get_logger("edge_agent")
        log.warning("the server of the fallback cannot answer", reason=reason)
        return False

    def count_answers(self, count: int) -> None:
        """Count answers that the server is asked for."""
        self._metrics.fallback_answers.inc(count)

    async def close(self) -> None:
        """Do nothing: the server has started nothing here."""


def open_engine(stored: StoredModel, drafter: Drafter, context_tokens: int) -> DraftEngine:
    """Return the engine over a draft model. context_tokens: those of a slot of the drafter.
    Raises CannotOpen."""
    file = tokenizer_file(stored.path)
    tokenizer = file.open()
    vocabulary = tokenizer.vocabulary
    facts = ModelFacts(
        model=stored.name,
        vocabulary_size=len(vocabulary.pieces),
        vocabulary=file.digest,
        context_tokens=context_tokens,
        stop_tokens=sorted(vocabulary.stop_tokens),
        limits=Limits(),
        judges=["coupled"],
        features=list(FEATURES),
        defaults=file.defaults,
    )
    return DraftEngine(facts, drafter, tokenizer)
