"""The result of a check, and the table of all results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from picospec.cli.options import visible


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    subject: str
    ok: bool
    found: str
    remedy: str = ""
    """The advice if the check is not ok."""

    warns: bool = False
    """The check is ok, but could be better: the remedy describes how."""


def report(findings: Sequence[Finding], console: Console) -> bool:
    """Print a table of the findings; return True if all are ok."""
    table = Table("", "what", "found", "what to do", box=None, pad_edge=False)
    for finding in findings:
        warns = finding.ok and finding.warns
        mark = "[yellow]warn[/]" if warns else "[green]ok[/]" if finding.ok else "[red]fail[/]"
        remedy = finding.remedy if warns or not finding.ok else ""
        texts = (escape(visible(text)) for text in (finding.subject, finding.found, remedy))
        table.add_row(mark, *texts)
    console.print(table)
    return all(finding.ok for finding in findings)


def milliseconds(seconds: float) -> str:
    """Return a time in the form that findings show."""
    return f"{seconds * 1000:.3g} ms"
