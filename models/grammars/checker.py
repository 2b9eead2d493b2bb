"""Runs `trial`, which checks grammars, in another process, and restarts it when it ends."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from picospec.models.confined import Worker
from picospec.models.errors import CannotCheck
from picospec.models.grammars.constraint import Constraint
from picospec.models.grammars.trial import CPU_S, Attempt, Outcome, Tokens
from picospec.models.vocabulary import Vocabulary

MAX_LINE_BYTES: Final = 1 << 24
"""An answer, which contains the text of a grammar, has at most this many bytes."""

START_TIMEOUT_S: Final = 60.0
"""A process that does not start within this time is given up. A start takes a fifth of a second
on an idle machine."""

ANSWER_TIMEOUT_S: Final = 30.0
"""An attempt without a result after this time is given up. Its own limit is processor time,
which takes longer on a busy machine."""


class Checker:
    """Checks one grammar at a time; the caller must ensure that."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._worker: Worker | None = None

    async def check(self, constraint: Constraint) -> Outcome:
        """Return the grammar in llguidance's form, or the error in it. Raises CannotCheck."""
        worker = self._worker or await self._start()
        try:
            attempt = Attempt(constraint.kind, constraint.value)
            return await _ask(worker, attempt, ANSWER_TIMEOUT_S)
        except TimeoutError as error:
            self.close()
            raise CannotCheck(str(error)) from error
        except (OSError, EOFError):
            self.close()
            reason = f"takes more than {CPU_S} s, or too much memory, to compile"
            return Outcome(where=constraint.kind, reason=reason)
        except asyncio.CancelledError:
            self.close()  # or the next attempt would read this one's answer
            raise

    def close(self) -> None:
        """Kill the process. The next check starts another one."""
        if self._worker is not None:
            self._worker.process.kill()
            self._worker = None

    async def _start(self) -> Worker:
        try:
            self._worker = Worker("picospec.models.grammars.trial")
            await _ask(self._worker, Tokens.of(self._vocabulary), START_TIMEOUT_S)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError | EOFError):
                raise CannotCheck("the process that tries grammars does not start") from error
            raise
        return self._worker


async def _ask(worker: Worker, message: msgspec.Struct, limit_s: float) -> Outcome:
    line = msgspec.json.encode(message)
    answer = await asyncio.to_thread(worker.ask, line, limit_s, MAX_LINE_BYTES)
    return msgspec.json.decode(answer, type=Outcome)
