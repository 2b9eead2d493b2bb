"""Compiles what clients ask of a text, for one target: limited in time, and kept by content."""

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
"""Of so many constraints it is known whether they are grammars; each takes half a megabyte at
most."""

COMPILED: Final = 16
"""So many grammars are kept compiled. Most take a megabyte; some grow to a hundred."""

MAX_WAITING: Final = 32
"""So many constraints of one owner may wait to be tried, which takes a second each at worst."""

WAITING: Final = "grammars wait to be tried"
"""Errors call waiting constraints so."""

Turn = Callable[[object], AbstractAsyncContextManager[None]]
"""turn(owner) is entered when it is the owner's turn, and left when the work is done. There is
one turn at a time."""

T = TypeVar("T")


class GrammarCompiler:
    """What it does for several owners at once, it does in their turns. An owner is whoever
    asks; None: nobody is known."""

    def __init__(self, tokenizer: Tokenizer, turn: Turn) -> None:
        self.tokenizer = tokenizer
        self._turn = turn
        self._checker = Checker(tokenizer.vocabulary)
        self._verdicts: dict[bytes, Outcome] = {}
        self._compiled: dict[bytes, Grammar] = {}

    async def check(self, asked: bytes, owner: object = None) -> str:
        """Return the grammar that a constraint, as JSON, means. Raises InvalidGrammar or
        CannotCheck, and what `turn` raises."""
        if (verdict := self._verdicts.get(asked)) is None:
            async with self._turn(owner):
                verdict = await self._verdict(asked)
        return _grammar(verdict)

    async def compile(self, asked: bytes, owner: object = None) -> Grammar:
        """Return the grammar of a constraint, ready for use. Raises as `check` does."""
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
        """Return what `compile` returned for these bytes, unless that is long ago."""
        grammar = self._compiled.get(asked)
        return None if grammar is None or grammar.is_spent else grammar

    async def close(self) -> None:
        """End the process that tries grammars."""
        self._checker.close()

    async def _verdict(self, asked: bytes) -> Outcome:
        """Return what is known of a constraint, or try it."""
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
    """Put a value in, and forget the oldest beyond `most`."""
    kept.pop(key, None)
    kept[key] = value
    if len(kept) > most:
        del kept[next(iter(kept))]
