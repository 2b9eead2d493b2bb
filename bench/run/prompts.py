"""Prompts by family: code, maths, chat, edit. Families differ more than methods do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import msgspec

from speculation.protocol.messages import Sampling

SHIPPED = Path(__file__).with_name("prompts.jsonl")


class Prompt(msgspec.Struct, frozen=True):
    """One user message."""

    id: str
    family: str
    prompt: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which prompts to take."""

    families: Collection[str] = ()
    """Empty: all."""

    per_family: int | None = None


def sampling(temperature: float) -> Sampling:
    """Return the settings that every arm and every trace draws with."""
    return Sampling(temperature=temperature, top_p=0.95 if temperature else 1.0)


def read(path: Path = SHIPPED, selection: Selection | None = None) -> list[Prompt]:
    """Return prompts in the file's order. Raises OSError, or ValueError that names the line."""
    chosen = selection or Selection()
    taken: Counter[str] = Counter()
    prompts = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            prompt = msgspec.json.decode(line, type=Prompt)
        except msgspec.MsgspecError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        if chosen.families and prompt.family not in chosen.families:
            continue
        taken[prompt.family] += 1
        if chosen.per_family is None or taken[prompt.family] <= chosen.per_family:
            prompts.append(prompt)
    return prompts
