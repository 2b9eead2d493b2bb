"""Has grammars tried in another process, see `trial`, and starts that one anew when it ends."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from typing import Final

import msgspec

from picospec.models.confined import command, environment
from picospec.models.errors import CannotCheck
from picospec.models.grammars.constraint import Constraint
from picospec.models.grammars.trial import CPU_S, Attempt, Outcome, Tokens
from picospec.models.vocabulary import Vocabulary

MAX_LINE_BYTES: Final = 1 << 24
"""An answer, which has the text of a grammar, has no more bytes."""

START_TIMEOUT_S: Final = 60.0
"""A process that has not started after so many seconds is given up. The start takes a fifth of
a second on an idle machine."""

ANSWER_TIMEOUT_S: Final = 30.0
"""An attempt that has no result after so many seconds is given up. Its own limit is processor
time, for which a busy machine takes longer."""


class Checker:
    """One attempt at a time; the caller sees to that."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._process: Process | None = None

    async def check(self, constraint: Constraint) -> Outcome:
        """Return the grammar as llguidance reads it, or what is wrong. Raises CannotCheck."""
        attempt = Attempt(constraint.kind, constraint.value)
        process = self._process or await self._start()
        try:
            return await self._ask(process, attempt, ANSWER_TIMEOUT_S)
        except (OSError, EOFError, TimeoutError, asyncio.CancelledError) as error:
            await self.close()  # its answer would be taken for that of the next attempt
            if isinstance(error, asyncio.CancelledError):
                raise
            if isinstance(error, TimeoutError):
                raise CannotCheck(f"no answer within {ANSWER_TIMEOUT_S:g} s") from error
            reason = f"takes more than {CPU_S} s, or too much memory, to compile"
            return Outcome(where=constraint.kind, reason=reason)

    async def close(self) -> None:
        """End the process; the next check starts one."""
        process, self._process = self._process, None
        if process is not None:
            if process.stdout is not None and not process.stdout.at_eof():
                with suppress(ProcessLookupError):
                    process.kill()
            await process.wait()

    async def _start(self) -> Process:
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command("picospec.models.grammars.trial"),
                stdin=PIPE, stdout=PIPE, stderr=DEVNULL, limit=MAX_LINE_BYTES,
                env=environment(),
            )  # fmt: skip
            await self._ask(self._process, Tokens.of(self._vocabulary), START_TIMEOUT_S)
        except BaseException as error:
            await self.close()
            if isinstance(error, (OSError, EOFError, TimeoutError)):
                raise CannotCheck("the process that tries grammars does not start") from error
            raise
        return self._process

    async def _ask(self, process: Process, message: msgspec.Struct, limit_s: float) -> Outcome:
        if process.stdin is None or process.stdout is None:
            raise EOFError
        async with asyncio.timeout(limit_s):
            process.stdin.write(msgspec.json.encode(message) + b"\n")
            await process.stdin.drain()
            if not (line := await process.stdout.readline()):
                raise EOFError
        return msgspec.json.decode(line, type=Outcome)
