"""Reads the scenarios: what the user and the tools say at each turn of a conversation.

The target answers each turn itself, and the conversation goes on from its own answers; what a
tool returns is in the script, whatever was called. Tools are described in the system message,
and calls are text: so every model, and every server, gets the same prompt.
"""

from __future__ import annotations

import tomllib
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

    @property
    def name(self) -> str:
        return f"{self.family}/{self.id}"

    @property
    def system(self) -> str:
        """The system message that it begins with; "" if it has none."""
        return (FOLDER / "system.md").read_text("utf-8") if self.family in AGENTS else ""


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    scenario: tuple[Scenario, ...]


def scenarios(script: Path = FOLDER / "scenarios.toml") -> tuple[Scenario, ...]:
    """Return the scenarios. Raises OSError, or ValueError."""
    return msgspec.convert(tomllib.loads(script.read_text("utf-8")), Script).scenario


def text(turn: Turn) -> str:
    """Return what the target reads at a turn."""
    with ZipFile(SOURCES) as sources:
        read = [f"[read_file {path}]\n{sources.read(path).decode()}" for path in turn.reads]
    parts = (turn.output, *read, turn.say)
    return "\n\n".join(stripped for part in parts if (stripped := part.strip()))
