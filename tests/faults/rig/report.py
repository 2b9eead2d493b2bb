"""What was found: a table to read, and a file under build/."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Final

from rich.console import Console
from rich.table import Table

from tests.faults.rig.world import FOLDER

FILE: Final = FOLDER.parent / "faults.json"


@dataclass(frozen=True, slots=True)
class Row:
    fault: str
    outcome: str
    """How the answers ended."""

    seconds: float | None = None
    """The longest time without text, after the fault; None where there is no such time."""

    identical: bool | None = None
    """Whether all answers were those that nothing happened to; None where none must be."""

    note: str = ""


@dataclass
class Report:
    rows: list[Row] = field(default_factory=list)

    def add(
        self,
        fault: str,
        outcome: str,
        seconds: float | None = None,
        identical: bool | None = None,
        note: str = "",
    ) -> None:
        rounded = None if seconds is None else round(seconds, 2)
        self.rows.append(Row(fault, outcome, rounded, identical, note))
        rows = [asdict(row) for row in self.rows]
        FILE.write_text(json.dumps(rows, indent=1, ensure_ascii=False))

    def show(self) -> None:
        """Print all rows, if there are any."""
        if not self.rows:
            return
        table = Table("fault", "outcome", "seconds", "identical", "note", title="faults")
        for row in self.rows:
            seconds = "-" if row.seconds is None else f"{row.seconds:.2f}"
            same = {None: "-", True: "yes", False: "NO"}[row.identical]
            table.add_row(row.fault, row.outcome, seconds, same, row.note)
        Console(width=130).print(table)
