"""Reads the scenarios, which script what the user and the tools say in a conversation.

The target answers each turn itself, and the conversation continues with its own answers. The
results of tools are scripted, whatever was called. Tools are described in the system message,
and calls are text, so every model and every server gets the same prompt.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final
from zipfile import ZipFile

import msgspec

FOLDER: Final = Path(__file__).parent / "scenarios"
SOURCES: Final = FOLDER / "sources.zip"

AGENTS: Final = ("agent", "held-out")
"""These families begin with an agent's system message."""

FAMILIES: Final = (*AGENTS, "long")

CONTEXT_TOKENS: Final = 17 * 1024
"""Every scenario fits into this with its answers: it ends at 16,384 tokens at most."""


def root(family: str) -> str:
    """Return a family without the kind of turn, which follows a slash in scenarios."""
    return family.partition("/")[0]


def scenario_of(prompt: str) -> str:
    """Return the scenario of a turn's id. Any other prompt is a scenario of its own."""
    return prompt.rpartition("/")[0] if root(prompt) in FAMILIES else prompt


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    say: str
    kind: str = ""
    """The turn asks for this: explain, edit, patch, call, react."""

    reads: tuple[str, ...] = ()
    """The turn begins with the results of `read_file` for these files."""

    output: str = ""
    """The turn begins with this result of another tool, including its name."""


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    family: str
    turns: tuple[Turn, ...]

    @property
    def name(self) -> str:
        return f"{self.family}/{self.id}"

    @property
    def system(self) -> str:
        """Return the system message that begins the scenario; "" if it has none."""
        return (FOLDER / "system.md").read_text("utf-8") if self.family in AGENTS else ""


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    scenario: tuple[Scenario, ...]


def scenarios(script: Path = FOLDER / "scenarios.toml") -> tuple[Scenario, ...]:
    """Return the scenarios. Raises OSError or ValueError."""
    return msgspec.convert(tomllib.loads(script.read_text("utf-8")), Script).scenario


def text(turn: Turn) -> str:
    """Return the text that the target reads at a turn."""
    with ZipFile(SOURCES) as sources:
        read = [f"[read_file {path}]\n{sources.read(path).decode()}" for path in turn.reads]
    parts = (turn.output, *read, turn.say)
    return "\n\n".join(stripped for part in parts if (stripped := part.strip()))
