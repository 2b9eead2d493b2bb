"""Finds the sources of one answer's draft tokens besides the draft model.

The edge has prompt lookup, also in the cache, and the answer's grammar where it forces a token.
The verifier has the tokens that the Open predicts: the client's prediction, or else the
beginning of the answer that the cache expects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar
from weakref import WeakKeyDictionary

from edge_agent.draft_grammars import DraftGrammar, EdgeGrammars, GrammarProposer
from edge_agent.settings import EdgeSettings
from gateway.background_work import start
from gateway.ports import Job, TenantOwner
from local_models.constraints import NAME
from local_models.errors import CannotCheck
from local_models.grammars import Grammar
from local_models.tokenizer import Tokenizer
from speculation.answer_cache import AnswerCache
from speculation.judges import JUDGES
from speculation.lookup import PromptLookup
from speculation.messages import MAX_PREDICTED, Open
from speculation.model_facts import ModelFacts, TokenId
from speculation.ngrams import PromptGrams
from speculation.proposer import Proposer
from speculation.request_names import PREDICTION

INLINE_TOKENS: Final = 2048
"""The n-grams of up to this many prompt tokens are made in the event loop, in milliseconds."""

EXPECTED_TOKENS: Final = 2048
"""At most this many tokens of an earlier answer are sent to the verifier, which are 6 KB: the
edge itself drafts what follows."""

MAX_PREDICTED_CHARS: Final = 16 * MAX_PREDICTED
"""At most this many characters of a prediction are read: what follows is beyond MAX_PREDICTED
tokens of any text but spaces."""

MIN_ANSWER_CACHE_TOKENS: Final = 1024
"""A smaller cache would hold no answer that is worth keeping."""


@dataclass(frozen=True, slots=True)
class DraftSources:
    """The sources of draft tokens for one answer."""

    request: Open
    """The answer's Open, with leave for the verifier to draft too, and the expected tokens."""

    predicted: tuple[TokenId, ...]
    """The tokens that the client expects in the answer; the statistics count them."""

    grammar: Grammar | None
    proposer: Proposer | None
    answer_cache: AnswerCache | None

    def keep(self, answer: Sequence[TokenId]) -> None:
        """Add an answer, complete or not, to the cache, if there is one."""
        if self.answer_cache is not None:
            self.answer_cache.add(self.request.prompt, answer)


class EdgeAnswerCaches:
    """Has a cache of answers for each owner: nobody's drafts come from another owner's answers.

    An owner is the object that stands for a client, such as the holder of a key. A cache is
    dropped with its owner, and when the target has another vocabulary.

    max_tokens: the size of each cache; 0 keeps nothing.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens and max(MIN_ANSWER_CACHE_TOKENS, max_tokens)
        self._kept: WeakKeyDictionary[object, tuple[str, AnswerCache]] = WeakKeyDictionary()

    def of(self, owner: object | None, target: ModelFacts) -> AnswerCache | None:
        """Return an owner's cache; None if nothing is kept, as without an owner."""
        if owner is None or not self._max_tokens:
            return None
        kept = self._kept.get(owner)
        if kept is None or kept[0] != target.vocabulary:
            kept = self._kept[owner] = target.vocabulary, AnswerCache(self._max_tokens)
        return kept[1]

    def empty(self, owner: object) -> None:
        """Drop an owner's cache; answers that have begun still draft from it."""
        self._kept.pop(owner, None)


Made = TypeVar("Made")


class OncePerPrompt(Generic[Made]):
    """Makes something of a prompt in a thread, because a prompt may be long, once for all
    choices that begin at the same time."""

    def __init__(self) -> None:
        self._making: dict[int, asyncio.Task[Made]] = {}  # by id of the prompt

    async def of(
        self, prompt: tuple[TokenId, ...], make: Callable[[tuple[TokenId, ...]], Made]
    ) -> Made:
        making = self._making.get(id(prompt))
        if making is None:
            making = start(asyncio.to_thread(make, prompt))
            self._making[id(prompt)] = making
            making.add_done_callback(lambda _: self._making.pop(id(prompt)))
        return await asyncio.shield(making)


class ProposalFinder:
    """Serves all answers of an edge. tokenizer: returns the target's, by its digest."""

    def __init__(
        self, settings: EdgeSettings, tokenizer: Callable[[str], Awaitable[Tokenizer]]
    ) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self._grammars = EdgeGrammars()
        self._grams = OncePerPrompt[PromptGrams]()
        self.answer_caches = EdgeAnswerCaches(settings.answer_cache_tokens)

    async def prepare(self) -> None:
        """Make what the grammars of the target in use need. Raises ApiError."""
        if self._settings.grammars and JUDGES[self._settings.judge].takes_any_draft:
            await self._grammars.prepare(await self._tokenizer(""))

    async def find(self, request: Open, job: Job, target: ModelFacts) -> DraftSources:
        """Return the proposals for one request.

        Only some judges take any draft token, and only with fill `auto` may a pass do without
        the edge's. Raises InvalidRequest for a grammar that cannot be compiled.
        """
        if not JUDGES[request.judge].takes_any_draft:
            return DraftSources(request, (), None, None, None)
        grammar = await self._grammar(request, job.owner)
        answer_cache = self.answer_caches.of(job.owner, target)
        proposer: Proposer | None = None
        if self._settings.lookup:
            proposer = await self._lookup(request.prompt, answer_cache)
        if grammar is not None:
            proposer = GrammarProposer(DraftGrammar(grammar), proposer)
        if not (self._settings.ngram_drafts and request.fill == "auto"):
            return DraftSources(request, (), grammar, proposer, answer_cache)
        predicted = await self._predicted(job, request.vocabulary)
        expected = predicted or (
            answer_cache.expected(request.prompt, EXPECTED_TOKENS) if answer_cache else ()
        )
        request = replace(request, ngram_drafts=True, predicted=expected)
        return DraftSources(request, predicted, grammar, proposer, answer_cache)

    async def _lookup(
        self, prompt: tuple[TokenId, ...], answer_cache: AnswerCache | None
    ) -> PromptLookup:
        """Return the prompt lookup of one answer."""
        if len(prompt) <= INLINE_TOKENS:
            return PromptLookup(prompt, answer_cache=answer_cache)
        return PromptLookup(prompt, await self._grams.of(prompt, PromptGrams), answer_cache)

    async def _grammar(self, request: Open, owner: TenantOwner | None) -> Grammar | None:
        if not (self._settings.grammars and NAME in request.sampling.extras):
            return None
        tokenizer = await self._tokenizer(request.vocabulary)
        try:
            return await self._grammars.compile(request, tokenizer, owner)
        except CannotCheck:  # drafts need no grammar
            return None

    async def _predicted(self, job: Job, vocabulary: str) -> tuple[TokenId, ...]:
        """Return the tokens of a job's prediction, if it has one. A thread tokenises the text,
        which may be a whole file."""
        text = job.extras.get(PREDICTION)
        if not (isinstance(text, str) and text):
            return ()
        encode = (await self._tokenizer(vocabulary)).encode
        try:
            tokens = await asyncio.to_thread(
                encode, text[:MAX_PREDICTED_CHARS], special=False, begin=False
            )
        except ValueError:  # the tokenizer fails: the answer needs no prediction
            return ()
        return tuple(tokens[:MAX_PREDICTED])

    async def close(self) -> None:
        """End the process that tries grammars."""
        await self._grammars.close()
