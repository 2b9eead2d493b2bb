"""Reads the scenarios: what the user and the tools say at each turn of a conversation.

The target answers each turn itself, and the conversation goes on from its own answers; what a
tool returns is in the script, whatever was called. Tools are described in the system message,
and calls are text: so every model, and every server, gets the same prompt.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from zipfile import ZipFile

import msgspec

FOLDER: Final = Path(__file__).parent
SOURCES: Final = FOLDER / "sources.zip"

AGENTS: Final = ("agent", "held-out")
"""These families have the system message of an agent."""

FAMILIES: Final = (*AGENTS, "long")

CONTEXT_TOKENS: Final = 17 * 1024
"""Every scenario fits, with its answers: it ends at 16,384 tokens at most."""


def root(family: str) -> str:
    """Return a family without the kind of turn, which a scenario's has after a slash."""
    return family.partition("/")[0]


def scenario_of(prompt: str) -> str:
    """Return the scenario of a turn by its id; any other prompt is one by itself."""
    return prompt.rpartition("/")[0] if root(prompt) in FAMILIES else prompt


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    say: str
    kind: str = ""
    """What is asked for: explain, edit, patch, call, react."""

    reads: tuple[str, ...] = ()
    """The results of `read_file` for these files come first."""

    output: str = ""
    """The result of another tool comes first, with its name."""


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    family: str
    turns: tuple[Turn, ...]


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    scenario: tuple[Scenario, ...]


@dataclass(frozen=True, slots=True)
class Said:
    """One turn as the target reads it."""

    scenario: str
    turn: int
    family: str
    """It has the scenario's family, and the kind of the turn after a slash."""

    system: str
    text: str


def said(script: Path = FOLDER / "scenarios.toml") -> Iterator[Said]:
    """Yield the turns of all scenarios in order. Raises OSError, or ValueError."""
    document = tomllib.loads(script.read_text("utf-8"))
    system = (FOLDER / "system.md").read_text("utf-8")
    with ZipFile(SOURCES) as sources:
        for scenario in msgspec.convert(document, Script).scenario:
            for number, turn in enumerate(scenario.turns):
                yield Said(
                    f"{scenario.family}/{scenario.id}",
                    number,
                    "/".join(filter(None, (scenario.family, turn.kind))),
                    system if scenario.family in AGENTS else "",
                    "\n\n".join((*_results(turn, sources), turn.say.strip())),
                )


def _results(turn: Turn, sources: ZipFile) -> Iterator[str]:
    if turn.output:
        yield turn.output.strip()
    for path in turn.reads:
        yield f"[read_file {path}]\n{sources.read(path).decode()}".rstrip()
