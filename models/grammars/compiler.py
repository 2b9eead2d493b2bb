"""Compiles clients' constraints for one target, within a time limit, and caches the results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import cached_property, partial
from typing import Final, TypeVar

from picospec.models.errors import InvalidGrammar
from picospec.models.grammars.binding import MatcherTokens, make_tokenizer
from picospec.models.grammars.checker import Checker
from picospec.models.grammars.constraint import Constraint
from picospec.models.grammars.grammar import Grammar
from picospec.models.grammars.trial import Outcome
from picospec.models.tokenizing.tokenizer import Tokenizer

VERDICTS: Final = 64
"""The verdicts on this many constraints are kept: whether they are valid. Each takes half a
megabyte at most."""

COMPILED: Final = 16
"""This many compiled grammars are kept. Most take a megabyte; some grow to a hundred."""

MAX_WAITING: Final = 32
"""This many constraints of an owner may wait for a check, of a second each at worst."""

WAITING: Final = "grammars wait to be tried"
"""Error messages use this phrase for waiting constraints."""

Turn = Callable[[object], AbstractAsyncContextManager[None]]
"""turn(owner) is a context manager: it enters when it is the owner's turn, and exits when the
work is done. Only one turn is taken at a time."""

T = TypeVar("T")


class GrammarCompiler:
    """Checks and compiles constraints. Requests of several owners take turns. An owner is the
    requester; None if unknown."""

    def __init__(self, tokenizer: Tokenizer, turn: Turn) -> None:
        self.tokenizer = tokenizer
        self._turn = turn
        self._checker = Checker(tokenizer.vocabulary)
        self._verdicts: dict[bytes, Outcome] = {}
        self._compiled: dict[bytes, Grammar] = {}

    async def check(self, asked: bytes, owner: object = None) -> str:
        """Return the grammar of a constraint (JSON). Raises InvalidGrammar or CannotCheck, and
        the errors of `turn`."""
        if (verdict := self._verdicts.get(asked)) is None:
            async with self._turn(owner):
                verdict = await self._verdict(asked)
        return _grammar(verdict)

    async def compile(self, asked: bytes, owner: object = None) -> Grammar:
        """Return the compiled grammar of a constraint. Raises the errors of `check`."""
        if (grammar := self.compiled(asked)) is not None:
            return grammar
        if (verdict := self._verdicts.get(asked)) is not None:
            _grammar(verdict)
        async with self._turn(owner):
            text = _grammar(await self._verdict(asked))
            if (grammar := self.compiled(asked)) is None:
                grammar = await asyncio.to_thread(lambda: Grammar(self._tokens, text))
                _keep(self._compiled, asked, grammar, COMPILED)
        return grammar

    def compiled(self, asked: bytes) -> Grammar | None:
        """Return the grammar that `compile` made of these bytes, unless it was dropped."""
        grammar = self._compiled.get(asked)
        return None if grammar is None or grammar.is_spent else grammar

    async def close(self) -> None:
        """End the process that checks grammars."""
        self._checker.close()

    async def _verdict(self, asked: bytes) -> Outcome:
        """Return the kept verdict on a constraint, or check it."""
        if (verdict := self._verdicts.get(asked)) is None:
            try:
                verdict = await self._checker.check(Constraint.of(asked))
            except InvalidGrammar as error:
                verdict = Outcome(where=error.where, reason=error.reason)
            _keep(self._verdicts, asked, verdict, VERDICTS)
        return verdict

    @cached_property
    def _tokens(self) -> MatcherTokens:
        tokenizer = self.tokenizer
        encode = partial(tokenizer.encode, special=False, begin=False)
        return make_tokenizer(tokenizer.vocabulary, encode)


def _grammar(verdict: Outcome) -> str:
    if verdict.reason:
        raise InvalidGrammar(verdict.where, verdict.reason)
    return verdict.grammar


def _keep(kept: dict[bytes, T], key: bytes, value: T, most: int) -> None:
    """Add a value, and drop the oldest one beyond `most`."""
    kept.pop(key, None)
    kept[key] = value
    if len(kept) > most:
        del kept[next(iter(kept))]
