"""Prompts by family: code, maths, chat, edit. Families differ more than methods do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path

import msgspec

from picospec.speculation.protocol.messages import Sampling

SHIPPED = Path(__file__).with_name("prompts.jsonl")


class Prompt(msgspec.Struct, frozen=True):
    """One user message."""

    id: str
    family: str
    prompt: str
    source: str = ""
    prediction: str = ""
    """The answer is expected to be this; an OpenAI client would send it as `prediction`."""


def sampling(temperature: float) -> Sampling:
    """Return the settings that every arm and every trace samples with."""
    return Sampling(temperature=temperature, top_p=0.95 if temperature else 1.0)


def read(
    path: Path = SHIPPED, families: Collection[str] = (), per_family: int | None = None
) -> list[Prompt]:
    """Return the prompts of some families, or of all, in the file's order. Raises OSError, or
    ValueError that names the line, or a family that the file does not have."""
    taken: Counter[str] = Counter()
    prompts = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            prompt = msgspec.json.decode(line, type=Prompt)
        except msgspec.MsgspecError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        taken[prompt.family] += 1
        chosen = not families or prompt.family in families
        if chosen and (per_family is None or taken[prompt.family] <= per_family):
            prompts.append(prompt)
    if missing := set(families) - set(taken):
        raise ValueError(f"{path} has no prompts of {', '.join(sorted(missing))}")
    return prompts
