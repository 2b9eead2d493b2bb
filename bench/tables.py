"""Lays out cells as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

Line = Sequence[str]
Names = TypeVar("Names", bound=tuple[str, ...])


def grid(names: Names, cells: Mapping[tuple[Names, str], str]) -> tuple[Line, list[Line]]:
    """Return the head and the lines of a table, both in the order of the cells.

    names: headings of the columns that name a line. cells: keyed by line and heading.
    """
    headings = list(dict.fromkeys(heading for _, heading in cells))
    lines = dict.fromkeys(line for line, _ in cells)
    return (*names, *headings), [
        (*line, *(cells.get((line, heading), "") for heading in headings)) for line in lines
    ]


def markdown(head: Line, lines: Iterable[Line]) -> str:
    """Return a Markdown table. Each line has as many cells as the head."""
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def of_values(rows: Sequence[Mapping[str, str | float]]) -> str:
    """Return a Markdown table with a line for each row, whose values are by their headings."""
    head = list(dict.fromkeys(name for row in rows for name in row)) or ["nothing"]
    return markdown(head, [[_text(row.get(name, "")) for name in head] for row in rows])


def _text(value: str | float) -> str:
    """Return a number with three digits or more, and a text as it is."""
    if isinstance(value, str) or value == int(value):
        return f"{value}" if isinstance(value, str) else f"{int(value)}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
