"""A GrammarCompiler checks and compiles clients' constraints for one target in turn, within a
time limit, and caches the results."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import cached_property, partial
from typing import Final, TypeVar

from local_models.checker import Checker
from local_models.constraints import Constraint
from local_models.errors import InvalidGrammar
from local_models.grammars import Grammar
from local_models.guidance import MatcherTokens
from local_models.tokenizer import Tokenizer
from local_models.trial import TrialOutcome

K = TypeVar("K")
T = TypeVar("T")

VERDICTS: Final = 64
"""The verdicts on this many constraints are kept: whether they are valid. Each takes half a
megabyte at most."""

COMPILED: Final = 16
"""This many compiled grammars are kept. Most take a megabyte; some grow to a hundred."""

MAX_WAITING: Final = 32
"""This many grammars of a tenant may wait for a check, of a second each at worst; the next gets
a 429."""

WAITING: Final = "grammars wait to be tried"
"""Error messages use this phrase for waiting constraints."""

Turn = Callable[[object], AbstractAsyncContextManager[None]]
"""turn(owner) is a context manager: it enters when it is the owner's turn, and exits when the
work is done. Only one turn is taken at a time."""

_Asked = tuple[str | None, bytes]
"""An owner and its constraint."""


class GrammarCompiler:
    """Checks and compiles constraints. Requests of several owners take turns. An owner stands
    for the requester; None if unknown. Each grammar is checked and compiled for each owner,
    whose answer comes no sooner for what others have asked."""

    def __init__(self, tokenizer: Tokenizer, turn: Turn) -> None:
        self.tokenizer = tokenizer
        self._turn = turn
        self._checker = Checker(tokenizer.vocabulary)
        self._verdicts: dict[_Asked, TrialOutcome] = {}
        self._compiled: dict[_Asked, Grammar] = {}

    def prepare(self) -> None:
        """Make what all grammars need. No other thread runs meanwhile, so a service does this
        before its first answer."""
        _ = self._tokens

    async def check(self, data: bytes, owner: str | None = None) -> str:
        """Return the grammar of a constraint (JSON). Raises InvalidGrammar or CannotCheck, and
        the errors of `turn`."""
        if (verdict := self._verdicts.get((owner, data))) is None:
            async with self._turn(owner):
                verdict = await self._verdict(owner, data)
        return _grammar(verdict)

    async def compile(self, data: bytes, owner: str | None = None) -> Grammar:
        """Return the compiled grammar of a constraint. Raises the errors of `check`."""
        if (verdict := self._verdicts.get((owner, data))) is not None:
            _grammar(verdict)
            if (grammar := self.compiled(data, owner)) is not None:
                return grammar
        async with self._turn(owner):
            text = _grammar(await self._verdict(owner, data))
            if (grammar := self.compiled(data, owner)) is None:
                grammar = await self._checker.in_thread(lambda: Grammar(self._tokens, text))
                _keep(self._compiled, (owner, data), grammar, COMPILED)
        return grammar

    def compiled(self, data: bytes, owner: str | None = None) -> Grammar | None:
        """Return the grammar that `compile` made of these bytes, unless it was dropped."""
        grammar = self._compiled.get((owner, data))
        return None if grammar is None or grammar.is_spent else grammar

    async def close(self) -> None:
        """End the process that checks grammars."""
        self._checker.close()

    async def _verdict(self, owner: str | None, data: bytes) -> TrialOutcome:
        """Return the kept verdict on a constraint, or check it."""
        if (verdict := self._verdicts.get((owner, data))) is None:
            try:
                constraint = Constraint.of(data)
            except InvalidGrammar as error:
                verdict = TrialOutcome(where=error.where, reason=error.reason)
            else:
                verdict = await self._checker.check(constraint)
            _keep(self._verdicts, (owner, data), verdict, VERDICTS)
        return verdict

    @cached_property
    def _tokens(self) -> MatcherTokens:
        tokenizer = self.tokenizer
        encode = partial(tokenizer.encode, special=False, begin=False)
        return MatcherTokens(tokenizer.vocabulary, encode)


def _grammar(verdict: TrialOutcome) -> str:
    if verdict.reason:
        raise InvalidGrammar(verdict.where, verdict.reason)
    return verdict.grammar


def _keep(kept: dict[K, T], key: K, value: T, most: int) -> None:
    """Add a value, and drop the oldest one beyond `most`."""
    kept.pop(key, None)
    kept[key] = value
    if len(kept) > most:
        del kept[next(iter(kept))]
