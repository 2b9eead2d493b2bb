"""Finds the sources of one answer's draft tokens besides the draft model.

The edge has prompt lookup, also in the pool, and the answer's grammar where it forces a token.
The verifier has the tokens that the Open predicts: the client's prediction, or else the
beginning of the answer that the pool expects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final
from weakref import WeakKeyDictionary

from picospec.edge_agent.proposing.grammars import DraftGrammar, EdgeGrammars, GrammarProposer
from picospec.edge_agent.settings import EdgeSettings
from picospec.gateway.ports import Job
from picospec.models.errors import CannotCheck
from picospec.models.grammars import NAME, Grammar
from picospec.models.tokenizer import Tokenizer
from picospec.speculation.judges import JUDGES
from picospec.speculation.learning import Proposer
from picospec.speculation.lookup import PromptLookup
from picospec.speculation.messages import MAX_PREDICTED, PREDICTION, ModelFacts, Open, TokenId
from picospec.speculation.ngrams import Pool, PromptGrams

INLINE_TOKENS: Final = 2048
"""The n-grams of up to this many prompt tokens are made in the event loop, in milliseconds."""

EXPECTED_TOKENS: Final = 2048
"""At most this many tokens of an earlier answer are sent to the verifier, which are 6 KB: the
edge itself drafts what follows."""

MAX_PREDICTED_CHARS: Final = 16 * MAX_PREDICTED
"""At most this many characters of a prediction are read: what follows is beyond MAX_PREDICTED
tokens of any text but spaces."""

MIN_POOL_TOKENS: Final = 1024
"""A smaller pool would hold no answer that is worth keeping."""


@dataclass(frozen=True, slots=True)
class Proposals:
    """The sources of draft tokens for one answer."""

    request: Open
    """The answer's Open, with leave for the verifier to draft too, and the expected tokens."""

    predicted: tuple[TokenId, ...]
    """The tokens that the client expects in the answer; the statistics count them."""

    grammar: Grammar | None
    proposer: Proposer | None
    pool: Pool | None

    def keep(self, answer: Sequence[TokenId]) -> None:
        """Add an answer, complete or not, to the pool, if there is one."""
        if self.pool is not None:
            self.pool.add(self.request.prompt, answer)


class Pools:
    """Has a pool of answers for each owner: nobody's drafts come from another owner's answers.

    An owner is the object that stands for a client, such as the holder of a key. A pool is
    dropped with its owner, and when the target has another vocabulary.

    max_tokens: the size of each pool; 0 keeps nothing.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens and max(MIN_POOL_TOKENS, max_tokens)
        self._kept: WeakKeyDictionary[object, tuple[str, Pool]] = WeakKeyDictionary()

    def of(self, owner: object | None, target: ModelFacts) -> Pool | None:
        """Return an owner's pool; None if nothing is kept, as without an owner."""
        if owner is None or not self._max_tokens:
            return None
        kept = self._kept.get(owner)
        if kept is None or kept[0] != target.vocabulary:
            kept = self._kept[owner] = target.vocabulary, Pool(self._max_tokens)
        return kept[1]

    def empty(self, owner: object) -> None:
        """Drop an owner's pool; answers that have begun still draft from it."""
        self._kept.pop(owner, None)


class ProposalFinder:
    """Serves all answers of an edge. tokenizer: returns the target's, by its digest."""

    def __init__(
        self, settings: EdgeSettings, tokenizer: Callable[[str], Awaitable[Tokenizer]]
    ) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self._grammars = EdgeGrammars()
        self._grams: dict[int, asyncio.Task[PromptGrams]] = {}  # by id of the prompt
        self.pools = Pools(settings.pool_tokens)

    async def find(self, request: Open, job: Job, target: ModelFacts) -> Proposals:
        """Return the proposals for one request.

        Only some judges take any draft token, and only with fill `auto` may a pass do without
        the edge's. Raises InvalidRequest for a grammar that cannot be compiled.
        """
        if not JUDGES[request.judge].takes_any_draft:
            return Proposals(request, (), None, None, None)
        grammar = await self._grammar(request, job.owner)
        pool = self.pools.of(job.owner, target)
        proposer: Proposer | None = None
        if self._settings.lookup:
            proposer = await self._lookup(request.prompt, pool)
        if grammar is not None:
            proposer = GrammarProposer(DraftGrammar(grammar), proposer)
        if not (self._settings.verifier_drafts and request.fill == "auto"):
            return Proposals(request, (), grammar, proposer, pool)
        predicted = await self._predicted(job, request.vocabulary)
        expected = predicted or (pool.expected(request.prompt, EXPECTED_TOKENS) if pool else ())
        request = replace(request, own_drafts=True, predicted=expected)
        return Proposals(request, predicted, grammar, proposer, pool)

    async def _lookup(self, prompt: tuple[TokenId, ...], pool: Pool | None) -> PromptLookup:
        """Return the prompt lookup of one answer. A thread makes the n-grams of a long prompt,
        once for all choices that begin at the same time."""
        if len(prompt) <= INLINE_TOKENS:
            return PromptLookup(prompt, pool=pool)
        making = self._grams.get(id(prompt))
        if making is None:
            making = asyncio.create_task(asyncio.to_thread(PromptGrams, prompt))
            self._grams[id(prompt)] = making
            making.add_done_callback(lambda _: self._grams.pop(id(prompt)))
        return PromptLookup(prompt, await asyncio.shield(making), pool)

    async def _grammar(self, request: Open, owner: object) -> Grammar | None:
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
