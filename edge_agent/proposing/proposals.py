"""Finds what can propose one answer's draft tokens besides the draft model.

At the edge that is prompt lookup, and the answer's grammar where it forces a token. At the
verifier, which is told in the Open, it is what the client predicts or what was answered before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from edge_agent.proposing.grammars import EdgeGrammars, within
from edge_agent.proposing.past_answers import PastAnswers, PastAnswersByOwner
from edge_agent.speculation import Speculation
from gateway.ports import Job
from models.grammars.constraint import NAME
from models.grammars.grammar import Grammar
from models.tokenizing.tokenizer import Tokenizer
from speculation.proposing.prompt_lookup import PromptLookup
from speculation.proposing.proposer import Proposer
from speculation.protocol.messages import MAX_PREDICTED, ModelFacts, Open, TokenId
from speculation.protocol.opening import PREDICTION


@dataclass(frozen=True, slots=True)
class Proposals:
    """What can propose draft tokens for one answer."""

    request: Open
    """The answer's, with leave for the verifier to draft too, and with the tokens expected."""

    predicted: tuple[TokenId, ...]
    """The tokens that the client expects in the answer; the statistics count them."""

    grammar: Grammar | None
    proposer: Proposer | None
    past: PastAnswers | None

    def keep(self, answer: Sequence[TokenId]) -> None:
        """Keep an answer for when its prompt comes again, if such are kept."""
        if self.past is not None:
            self.past.add(self.request.prompt, answer)


class ProposalFinder:
    """It serves all answers of an edge. tokenizer: returns the target's."""

    def __init__(
        self, speculation: Speculation, tokenizer: Callable[[], Awaitable[Tokenizer]]
    ) -> None:
        self._how = speculation
        self._tokenizer = tokenizer
        self._grammars = EdgeGrammars()
        self._past = PastAnswersByOwner(speculation.past_answers_tokens)

    async def find(self, request: Open, job: Job, target: ModelFacts) -> Proposals:
        """Return the proposals for one request.

        Any draft token is exact in `coupled` alone, and a pass may do without the edge's with
        fill `auto` alone. Raises InvalidRequest for a grammar that cannot be compiled.
        """
        if request.judge != "coupled":
            return Proposals(request, (), None, None, None)
        grammar = await self._grammar(request, job.owner)
        lookup = PromptLookup(request.prompt) if self._how.lookup else None
        proposer = within(grammar, lookup)
        if not (self._how.verifier_drafts and request.fill == "auto"):
            return Proposals(request, (), grammar, proposer, None)
        predicted = await self._predicted(job)
        past = self._past.of(job.owner, target)
        expected = predicted or (past.to(request.prompt) if past else ())
        request = replace(request, own_drafts=True, predicted=expected)
        return Proposals(request, predicted, grammar, proposer, past)

    async def _grammar(self, request: Open, owner: object) -> Grammar | None:
        if not (self._how.grammars and NAME in request.sampling.extras):
            return None
        return await self._grammars.compile(request, await self._tokenizer(), owner)

    async def _predicted(self, job: Job) -> tuple[TokenId, ...]:
        """Return the tokens that a job predicts, if any. A thread reads the text, which may be
        a whole file."""
        text = job.extras.get(PREDICTION)
        if not (isinstance(text, str) and text):
            return ()
        encode = (await self._tokenizer()).encode
        tokens = await asyncio.to_thread(encode, text, special=False, begin=False)
        return tuple(tokens[:MAX_PREDICTED])

    async def close(self) -> None:
        """End the process that tries grammars."""
        await self._grammars.close()
