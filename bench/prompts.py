"""Prompts belong to a family: code, maths, chat, edit. Families differ more than methods do.

The families `agent`, `held-out` and `long` are scenarios: long work of many turns. They are
read only if they are named.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

from bench.long_work import FAMILIES, root, scenarios, text
from speculation.messages import Sampling

SHIPPED = Path(__file__).with_name("prompts.jsonl")

Message = Mapping[str, str]


class Prompt(msgspec.Struct, frozen=True):
    """A Prompt is one user message."""

    id: str
    family: str
    prompt: str
    source: str = ""
    prediction: str = ""
    """The answer is expected to be this; an OpenAI client would send it as `prediction`."""

    scenario: str = ""
    """The prompt is a turn of this conversation; "" means a separate question."""

    turn: int = 0
    """The conversation has this many turns before it."""

    system: str = ""
    """The conversation begins with this system message."""

    @property
    def root(self) -> str:
        return root(self.family)


class Conversation:
    """A Conversation has scripted turns, and one arm's own answers to them.

    It holds the current conversation; the first turn of a scenario begins another one.
    """

    def __init__(self) -> None:
        self._messages: list[Message] = []

    def before(self, prompt: Prompt) -> tuple[Message, ...]:
        """Return the messages before a prompt; none for a separate question. Raises ValueError
        if the turn before has no answer."""
        if prompt.turn == 0:
            self._messages = []
            if prompt.system:
                self._messages.append({"role": "system", "content": prompt.system})
        questions = sum(message["role"] == "user" for message in self._messages)
        if questions != prompt.turn:
            raise ValueError(f"{prompt.id}: {questions} turns before it have answers")
        return tuple(self._messages)

    def answered(self, prompt: Prompt, text: str) -> None:
        """Add a prompt and its answer."""
        said = {"user": prompt.prompt, "assistant": text}
        self._messages += [{"role": role, "content": words} for role, words in said.items()]


def sampling(temperature: float) -> Sampling:
    """Return the sampling settings of every arm and every trace."""
    return Sampling(temperature=temperature, top_p=0.95 if temperature else 1.0)


def read(
    path: Path = SHIPPED, families: Collection[str] = (), per_family: int | None = None
) -> list[Prompt]:
    """Return the prompts of some families, or of all in the file, in order. per_family: at most
    this many prompts of a family, or conversations of a scenario. Raises OSError, or a
    ValueError that names the line, or a family that the file lacks."""
    prompts = _lines(path)
    if path == SHIPPED and set(families) & set(FAMILIES):
        prompts += _scenarios()
    if missing := set(families) - {prompt.root for prompt in prompts}:
        raise ValueError(f"{path} has no prompts of {', '.join(sorted(missing))}")
    taken: defaultdict[str, dict[str, None]] = defaultdict(dict)
    chosen = []
    for prompt in prompts:
        taken[prompt.root].setdefault(prompt.scenario or prompt.id)
        if (not families or prompt.root in families) and (
            per_family is None or len(taken[prompt.root]) <= per_family
        ):
            chosen.append(prompt)
    return chosen


def _lines(path: Path) -> list[Prompt]:
    prompts = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            prompts.append(msgspec.json.decode(line, type=Prompt))
        except msgspec.MsgspecError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
    return prompts


def _scenarios() -> list[Prompt]:
    return [
        Prompt(
            f"{each.name}/{number + 1}", f"{each.family}/{turn.kind}".removesuffix("/"),
            text(turn), scenario=each.name, turn=number, system=each.system,
        )
        for each in scenarios()
        for number, turn in enumerate(each.turns)
    ]  # fmt: skip
