"""The check runs in parts: each has a time limit, and passes, fails or is not run.

An error that ends a part early becomes its result; the other parts and the report go on.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Final

from bench.tables import markdown
from gateway.errors import first_error

VLLMS_NOISE: Final = "vLLM's noise"
LAST_LINES: Final = 20
"""The report quotes this many last lines of a failed command's errors."""

Found = tuple[bool, str]
"""A Found says whether a part passes, and has its figures as Markdown."""

Work = Callable[[], Awaitable[Found]]


@dataclass(frozen=True, slots=True)
class Part:
    """A Part is a result: PASS, FAIL or "not run", with figures or the reason as Markdown."""

    name: str
    verdict: str
    found: str
    seconds: float = 0.0


class NotRun(Exception):
    """A part that raises this is not run; the message is the reason as Markdown."""


@dataclass(slots=True)
class Check:
    """Runs parts one after another, prints their steps, and collects their results."""

    notes: Sequence[str] = ()
    """These paragraphs precede the report's table."""

    title: str = "GPU check"
    out: Path | None = None
    """The report is written here after each part, so that an aborted run keeps it."""

    parts: list[Part] = field(default_factory=list)
    finished: bool = False
    _step: str = ""

    async def run(self, name: str, limit_s: float, work: Work) -> bool:
        """Run a part; return whether it passed."""
        verdict, began_s, self._step = "FAIL", perf_counter(), ""
        _say(f"==> {name}: at most {limit_s:g} s")
        report = "It was ended from outside."
        try:
            async with asyncio.timeout(limit_s):
                right, report = await work()
            verdict = "PASS" if right else "FAIL"
        except TimeoutError:
            report = self._after_step(f"It was not done within {limit_s:g} s.")
        except NotRun as reason:
            verdict, report = "not run", str(reason)
        except Exception as error:
            cause = first_error(error) if isinstance(error, ExceptionGroup) else error
            report = self._after_step(fenced(f"{type(cause).__name__}: {cause}"))
        finally:
            self._add(Part(name, verdict, report, perf_counter() - began_s))
        return verdict == "PASS"

    async def run_group(
        self, start: str, limit_s: float, starting: Work,
        works: Mapping[str, tuple[float, Work]],
    ) -> None:  # fmt: skip
        """Run a part that starts services, and if it passes the parts that need them. works:
        each with its limit in seconds."""
        if not await self.run(start, limit_s, starting):
            return self.skip("The services did not start.", *works)
        for name, (seconds, work) in works.items():
            await self.run(name, seconds, work)

    def step(self, what: str) -> None:
        """Print the current step of a part. If the part fails, its result names the step."""
        self._step = what
        _say(f"    {what}")

    def skip(self, why: str, *names: str) -> None:
        """Record parts that are not run."""
        for name in names:
            self._add(Part(name, "not run", why))

    def finish(self) -> str:
        """Return the whole report."""
        self.finished = True
        self._keep()
        return self.report()

    @property
    def failed(self) -> bool:
        return any(part.verdict == "FAIL" for part in self.parts)

    @property
    def verdict(self) -> str:
        """Return the overall result, for the report's title."""
        skipped = sum(part.verdict == "not run" for part in self.parts)
        passed = f"PASS{f', {skipped} not run' if skipped else ''}"
        return "FAIL" if self.failed else passed if self.finished else "not finished"

    def report(self) -> str:
        """Return the report on the parts so far, as Markdown."""
        lines = [(part.name, part.verdict, f"{part.seconds:.0f}") for part in self.parts]
        table = markdown(("part", "result", "seconds"), lines)
        sections = [f"## {part.name}: {part.verdict}\n\n{part.found}" for part in self.parts]
        title = f"# {self.title}: {self.verdict}"
        return "\n\n".join([title, *self.notes, table, *sections]) + "\n"

    def _after_step(self, report: str) -> str:
        return f"While: {self._step}.\n\n{report}" if self._step else report

    def _add(self, part: Part) -> None:
        _say(f"==> {part.name}: {part.verdict}, {part.seconds:.0f} s")
        self.parts.append(part)
        self._keep()

    def _keep(self) -> None:
        if self.out:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(self.report())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201  progress, for whoever waits


def fenced(text: str) -> str:
    """Return the output of a program as a Markdown code block."""
    return f"```\n{text.strip()}\n```"


async def command(*words: str) -> Found:
    """Run a command; return whether it succeeded, and its output. Raises OSError."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, stdout=pipe, stderr=pipe)
    try:
        printed, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    last_lines = errors.decode(errors="replace").splitlines()[-LAST_LINES:]
    report = printed.decode().strip() or fenced("\n".join(last_lines))
    return process.returncode == 0, report
