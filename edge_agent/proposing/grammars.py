"""The grammars of the edge's sessions: the target's own, so that drafts keep to them too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from picospec.gateway.errors import InvalidRequest
from picospec.gateway.tenants.turns import Turns
from picospec.models.errors import CannotCheck, GrammarFailed, InvalidGrammar
from picospec.models.grammars.compiler import MAX_WAITING, WAITING, GrammarCompiler
from picospec.models.grammars.constraint import NAME
from picospec.models.grammars.grammar import Grammar, GrammarState
from picospec.models.tokenizing.tokenizer import Tokenizer
from picospec.speculation.proposing.grammar_proposer import GrammarProposer
from picospec.speculation.proposing.proposer import Proposer
from picospec.speculation.protocol.messages import Open, TokenId
from picospec.speculation.sampling.distributions import Logits

T = TypeVar("T")


class EdgeGrammars:
    """Compiles grammars for the target that the edge has now."""

    def __init__(self) -> None:
        self._compiler: GrammarCompiler | None = None
        self._turns = Turns(1, MAX_WAITING, WAITING)

    async def compile(
        self, request: Open, tokenizer: Tokenizer, owner: object = None
    ) -> Grammar | None:
        """Return the grammar of a request; None where none can be tried now, because drafts
        need none. Raises InvalidRequest, or Overloaded where too many of the owner wait."""
        if self._compiler is None or self._compiler.tokenizer is not tokenizer:
            await self.close()
            self._compiler = GrammarCompiler(tokenizer, self._turns.take)
        try:
            return await self._compiler.compile(bytes(request.sampling.extras[NAME]), owner)
        except CannotCheck:
            return None
        except InvalidGrammar as error:
            field = error.field(NAME)
            raise InvalidRequest(f"{field}: {error.reason}", param=field) from error

    async def close(self) -> None:
        """End the process that tries grammars."""
        if self._compiler is not None:
            await self._compiler.close()


class DraftGrammar:
    """Where a chain stands in its grammar; for one thread. Unlike a GrammarState it never
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
        return self._ask(lambda state: state.follow(output), None)

    def forced(self) -> TokenId | None:
        return self._ask(lambda state: state.forced(), None)

    def count_allowed(self, tokens: Sequence[TokenId]) -> int:
        return self._ask(lambda state: state.count_allowed(tokens), len(tokens))

    def _ask(self, question: Callable[[GrammarState], T], otherwise: T) -> T:
        try:
            return otherwise if self._state is None else question(self._state)
        except GrammarFailed:
            self._state = None
            return otherwise


def within(grammar: Grammar | None, proposer: Proposer | None) -> Proposer | None:
    """Return what proposes tokens that a grammar allows, and those that it forces."""
    return proposer if grammar is None else GrammarProposer(DraftGrammar(grammar), proposer)
