"""The parts of the check: each runs within a limit of time, and passes, fails or is not run.

Whatever ends a part early is its result, as the other parts and the report do without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import perf_counter

import typer

from picospec.bench.data.tables import markdown
from picospec.gateway.errors import first_error

Work = Callable[[], Awaitable[tuple[bool, str]]]
"""Returns whether all is as it must be, and figures as Markdown."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part's result: PASS, FAIL or "not run", and figures or the reason as Markdown."""

    name: str
    verdict: str
    found: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Check:
    """Runs parts one after another, shows their results and collects them."""

    parts: list[Part] = field(default_factory=list)

    async def run(self, name: str, limit_s: float, work: Work) -> bool:
        """Run a part; return whether it passed."""
        right, began_s = False, perf_counter()
        try:
            async with asyncio.timeout(limit_s):
                right, found = await work()
        except TimeoutError:
            found = f"It was not done within {limit_s:g} s."
        except Exception as error:
            cause = first_error(error) if isinstance(error, ExceptionGroup) else error
            found = fenced(f"{type(cause).__name__}: {cause}")
        self._add(Part(name, "PASS" if right else "FAIL", found, perf_counter() - began_s))
        return right

    def skip(self, why: str, *names: str) -> None:
        """Note parts that are not run."""
        for name in names:
            self._add(Part(name, "not run", why))

    def _add(self, part: Part) -> None:
        typer.echo(f"==> {part.name}: {part.verdict}, {part.seconds:.0f} s", err=True)
        self.parts.append(part)

    @property
    def failed(self) -> bool:
        return any(part.verdict == "FAIL" for part in self.parts)

    def report(self, *notes: str) -> str:
        """Return the whole report as Markdown. notes: paragraphs before the table."""
        lines = [(part.name, part.verdict, f"{part.seconds:.0f}") for part in self.parts]
        table = markdown(("part", "result", "seconds"), lines)
        sections = [f"## {part.name}: {part.verdict}\n\n{part.found}" for part in self.parts]
        title = f"# GPU check: {'FAIL' if self.failed else 'PASS'}"
        return "\n\n".join([title, *notes, table, *sections]) + "\n"


def fenced(text: str) -> str:
    """Return lines that a program printed, as Markdown that leaves them as they are."""
    return f"```\n{text.strip()}\n```"
