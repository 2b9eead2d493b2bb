"""Which files of the product call which, as the hook wrote it down, and what that counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.walk.hook.sitecustomize import OUTSIDE


@dataclass(frozen=True, slots=True)
class Call:
    """A caller and a callee; both are paths of files in the checkout."""

    caller: str
    callee: str

    @property
    def folders(self) -> tuple[str, str]:
        return str(Path(self.caller).parent), str(Path(self.callee).parent)


@dataclass(frozen=True, slots=True)
class Walk:
    """The calls that something takes, all of them by functions of the product."""

    calls: frozenset[Call]

    @property
    def files(self) -> set[str]:
        return {file for call in self.calls for file in (call.caller, call.callee)} - {OUTSIDE}

    @property
    def borders(self) -> set[tuple[str, str]]:
        """The pairs of folders of which a file of one calls a file of the other."""
        inside = (call.folders for call in self.calls if call.caller != OUTSIDE)
        return {(one, other) for one, other in inside if one != other}

    def __str__(self) -> str:
        return f"{len(self.files)} files, {len(self.borders)} folder borders"


def walk(into: Path, begins: float, ends: float, processes: Iterable[int] = ()) -> Walk:
    """Return the calls between two times, of all processes or of those that are named."""
    names = {str(process) for process in processes}
    found = set()
    for file in into.iterdir():
        if names and file.name not in names:
            continue
        for line in file.read_text().splitlines():
            at, caller, callee = line.split(" ")
            if begins <= float(at) <= ends:
                found.add(Call(caller, callee))
    return Walk(frozenset(found))


def without(taken: Walk, idle: Walk) -> Walk:
    """Return what `taken` has beside the calls of services that nobody asks."""
    return Walk(taken.calls - idle.calls)
