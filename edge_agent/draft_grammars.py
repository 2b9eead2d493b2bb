"""The edge compiles an answer's grammar, masks draft logits by it, and proposes the tokens that
it forces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from gateway.errors import InvalidRequest
from gateway.ports import TenantOwner
from gateway.turns import Turns
from local_models.compiler import MAX_WAITING, WAITING, GrammarCompiler
from local_models.constraints import NAME
from local_models.errors import GrammarFailed, InvalidGrammar
from local_models.grammars import Grammar, GrammarState
from local_models.tokenizer import Tokenizer
from speculation.distributions import Logits
from speculation.draft_token import DraftToken
from speculation.messages import Open
from speculation.model_facts import TokenId
from speculation.proposer import Latencies, Proposer

T = TypeVar("T")


class EdgeGrammars:
    """Compiles grammars for the tokenizer of the latest request."""

    def __init__(self) -> None:
        self._compiler: GrammarCompiler | None = None
        self._turns = Turns(1, MAX_WAITING, WAITING)

    async def compile(
        self, request: Open, tokenizer: Tokenizer, owner: TenantOwner | None = None
    ) -> Grammar:
        """Return the grammar of a request that has one. Raises InvalidRequest, CannotCheck if
        no grammar can be tried now, or Overloaded if too many requests of the owner wait."""
        compiler = await self._of(tokenizer)
        try:
            grammar = bytes(request.sampling.extras[NAME])
            return await compiler.compile(grammar, owner.identity if owner else None)
        except InvalidGrammar as error:
            field = error.field(NAME)
            raise InvalidRequest(f"{field}: {error.reason}", param=field) from error

    async def prepare(self, tokenizer: Tokenizer) -> None:
        """See GrammarCompiler.prepare."""
        await asyncio.to_thread((await self._of(tokenizer)).prepare)

    async def _of(self, tokenizer: Tokenizer) -> GrammarCompiler:
        if self._compiler is None or self._compiler.tokenizer is not tokenizer:
            await self.close()
            self._compiler = GrammarCompiler(tokenizer, self._turns.take)
        return self._compiler

    async def close(self) -> None:
        """End the process that tries grammars."""
        compiler, self._compiler = self._compiler, None
        if compiler is not None:
            await compiler.close()


class DraftGrammar:
    """The state of a chain in its grammar, for one thread. Unlike a GrammarState it never
    fails: when the grammar reaches a limit, or a draft model has left it, any token may be
    drafted."""

    def __init__(self, grammar: Grammar) -> None:
        self._state: GrammarState | None = grammar.begin()

    def mask(self, logits: Logits, output: Sequence[TokenId]) -> Logits:
        self.follow(output)
        if self._ask(lambda state: state.is_outside, True):
            return logits
        return self._ask(lambda state: state.mask(logits, output), logits)

    def follow(self, output: Sequence[TokenId]) -> None:
        """Move to the position after `output`, which holds all output tokens before it."""
        return self._ask(lambda state: state.follow(output), None)

    def forced(self) -> TokenId | None:
        """Return the only token that may follow, None if there are several."""
        return self._ask(lambda state: state.forced(), None)

    def count_allowed(self, tokens: Sequence[TokenId]) -> int:
        """Return how many of these tokens may follow, one after the other."""
        return self._ask(lambda state: state.count_allowed(tokens), len(tokens))

    def _ask(self, question: Callable[[GrammarState], T], otherwise: T) -> T:
        try:
            return otherwise if self._state is None else question(self._state)
        except GrammarFailed:
            self._state = None
            return otherwise


class GrammarProposer:
    """A Proposer of tokens that the answer's grammar forces, and of those from another Proposer
    that it allows. other: that Proposer, for places where the grammar leaves a choice.

    Where a grammar allows a single token, as for the names in a JSON object of a known schema,
    the target can only generate that one. So it needs no draft step, and is certainly accepted
    if the target has this grammar.
    """

    def __init__(self, grammar: DraftGrammar, other: Proposer | None) -> None:
        self._grammar = grammar
        self._other = other

    def follow(self, committed: Sequence[TokenId], chain: Sequence[DraftToken]) -> None:
        self._grammar.follow([*committed, *(drafted.token for drafted in chain)])
        if self._other is not None:
            self._other.follow(committed, chain)

    def propose(self, latencies: Latencies) -> DraftToken | None:
        if (token := self._grammar.forced()) is not None:
            return DraftToken(token, confidence=1.0, origin="grammar")
        draft = None if self._other is None else self._other.propose(latencies)
        return draft if draft and self._grammar.count_allowed([draft.token]) else None

    def ahead(self, latencies: Latencies) -> list[TokenId]:
        tokens = [] if self._other is None else self._other.ahead(latencies)
        return tokens[: self._grammar.count_allowed(tokens)]

    def observe_reading(self, more: int, took_s: float, draft_s: float) -> None:
        if self._other is not None:
            self._other.observe_reading(more, took_s, draft_s)
