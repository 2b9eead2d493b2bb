"""A Finding is the result of a check; a report is the table of all results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from picospec.command_parts import visible


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    subject: str
    ok: bool
    found: str
    remedy: str = ""
    warns: bool = False
    """The check is ok, but could be better: the remedy describes how."""

    @property
    def advice(self) -> str:
        """Return what to do; an empty text if all is well."""
        return self.remedy if self.warns or not self.ok else ""


def report(findings: Sequence[Finding], console: Console) -> bool:
    """Print a table of the findings; return True if all are ok."""
    table = Table("", box=None, pad_edge=False)
    for name in ("what", "found", "what to do"):
        table.add_column(name, overflow="fold")  # what to do is to be copied whole
    for finding in findings:
        warns = finding.ok and finding.warns
        mark = "[yellow]warn[/]" if warns else "[green]ok[/]" if finding.ok else "[red]fail[/]"
        row = (finding.subject, finding.found, finding.advice)
        texts = (escape(visible(text)) for text in row)
        table.add_row(mark, *texts)
    console.print(table)
    return all(finding.ok for finding in findings)


def milliseconds(seconds: float) -> str:
    """Return a time in the form that findings show."""
    return f"{seconds * 1000:.3g} ms"
