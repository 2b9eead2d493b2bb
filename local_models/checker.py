"""Runs `trial`, which checks grammars, in another process, and restarts it when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import msgspec

from gateway.system import CPU_LIMIT_STATUS
from local_models.confined import Worker
from local_models.constraints import Constraint
from local_models.errors import CannotCheck, InvalidGrammar
from local_models.trial import CPU_S, Attempt, Tokens, TrialOutcome
from local_models.vocabulary import Vocabulary
from speculation.untrusted import decode_json

MAX_LINE_BYTES: Final = 1 << 24
"""An answer, which contains the text of a grammar, has at most this many bytes."""

START_TIMEOUT_S: Final = 60.0
"""A process that does not start within this time is given up. A start takes a fifth of a second
on an idle machine."""

ANSWER_TIMEOUT_S: Final = 30.0
"""The trial of a grammar without a result after this time is given up. Its own limit is
processor time, which takes longer on a busy machine."""


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

    async def in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        """Await a function in the one thread for this vocabulary's grammars, which may take
        seconds: the loop's shared threads read prompts."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *arguments)
