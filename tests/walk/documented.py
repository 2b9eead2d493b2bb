"""The walk of docs/architecture.md: who calls whom, row by row."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from tests.walk.calls import Call, Walk

ROOT: Final = Path(__file__).parents[2]
ROOMS: Final = ("edge_agent", "gateway", "local_models", "speculation", "verifier")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table. `where` names the process, and the target if only one has it."""

    where: str
    calls: tuple[Call, ...]

    def belongs_to(self, target: str) -> bool:
        return not self.where.startswith(("llama.cpp", "vLLM")) or self.where.startswith(target)


def rows() -> list[Row]:
    """Read the table. An arrow says that the file before it calls the one after it."""
    text = (ROOT / "docs" / "architecture.md").read_text().partition("## The walk")[2]
    cells = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| ")]
    return [Row(where.strip(), _calls(chains)) for where, chains in cells if "`" in chains]


def _calls(chains: str) -> tuple[Call, ...]:
    before, found = "", []
    for chain in chains.split(";"):
        files = []
        for name in re.findall(r"`([\w/]+\.py)`", chain):
            before = _path(name, before)
            files.append(before)
        found += [Call(one, other) for one, other in pairwise(files)]
    return tuple(found)


def _path(name: str, before: str) -> str:
    """Return a file's path. A name without a room is in the folder of the file before it."""
    if name.startswith(tuple(f"{room}/" for room in ROOMS)):
        return name
    return str(Path(before).parent / name)


def missing(walk: Walk, target: str) -> list[Call]:
    """Return the documented calls that nothing made. target: "llama.cpp" or "vLLM"."""
    documented = [call for row in rows() if row.belongs_to(target) for call in row.calls]
    return [call for call in documented if call not in walk.calls]
