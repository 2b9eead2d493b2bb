"""Compiles clients' constraints for one target, within a time limit, and caches the results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from functools import cached_property, partial
from typing import Final, TypeVar

import msgspec

from gateway.system import CPU_LIMIT_STATUS
from local_models.confined import Worker
from local_models.errors import CannotCheck, InvalidGrammar
from local_models.grammars import Constraint, Grammar, MatcherTokens, make_tokenizer
from local_models.tokenizer import Tokenizer
from local_models.trial import CPU_S, Attempt, Tokens, TrialOutcome
from local_models.vocabulary import Vocabulary
from speculation.untrusted import decode_json

# Runs `trial`, which checks grammars, in another process, and restarts it when it ends.

MAX_LINE_BYTES: Final = 1 << 24
"""An answer, which contains the text of a grammar, has at most this many bytes."""

START_TIMEOUT_S: Final = 60.0
"""A process that does not start within this time is given up. A start takes a fifth of a second
on an idle machine."""

ANSWER_TIMEOUT_S: Final = 30.0
"""An attempt without a result after this time is given up. Its own limit is processor time,
which takes longer on a busy machine."""


K = TypeVar("K")
T = TypeVar("T")

ATTEMPTS: Final = 2
"""A grammar is tried again in another process if the first ends for an unknown reason."""


class Checker:
    """Checks one grammar at a time; the caller must ensure that."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._worker: Worker | None = None
        self._thread = ThreadPoolExecutor(1, "grammars")

    async def check(self, constraint: Constraint) -> TrialOutcome:
        """Return the grammar in llguidance's form, or the error in it.

        Raises CannotCheck, or InvalidGrammar for a grammar during whose attempts two processes
        ended. A process may also end for a reason of its own, as when the host is short of
        memory, so neither condemns the grammar for ever.
        """
        reason = f"takes more than {CPU_S} s, or too much memory, to compile"
        for _ in range(ATTEMPTS):
            worker = self._worker or await self._start()
            try:
                attempt = Attempt(constraint.kind, constraint.value)
                return await self._ask(worker, attempt, ANSWER_TIMEOUT_S)
            except TimeoutError as error:
                self.close()
                raise CannotCheck(str(error)) from error
            except (OSError, EOFError):
                self.close()
                if worker.process.returncode == CPU_LIMIT_STATUS:
                    return TrialOutcome(where=constraint.kind, reason=reason)
            except asyncio.CancelledError:
                self.close()  # or the next attempt would read this one's answer
                raise
        raise InvalidGrammar(constraint.kind, reason)

    def close(self) -> None:
        """Kill the process. The next check starts another one."""
        if self._worker is not None:
            self._worker.process.kill()
            self._worker = None

    async def _start(self) -> Worker:
        try:
            tokens = await self.in_thread(Tokens.of, self._vocabulary)  # reads all of them
            self._worker = Worker("local_models.trial")
            await self._ask(self._worker, tokens, START_TIMEOUT_S)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError | EOFError):
                raise CannotCheck("the process that tries grammars does not start") from error
            raise
        return self._worker

    async def _ask(
        self, worker: Worker, message: msgspec.Struct, limit_s: float
    ) -> TrialOutcome:
        line = msgspec.json.encode(message)
        answer = await self.in_thread(worker.ask, line, limit_s, MAX_LINE_BYTES)
        return decode_json(answer, TrialOutcome)

    async def in_thread(self, function: Callable[..., K], *arguments: object) -> K:
        """Await a function in the one thread for this vocabulary's grammars, which may take
        seconds: the loop's shared threads read prompts."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *arguments)


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
        return make_tokenizer(tokenizer.vocabulary, encode)


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
