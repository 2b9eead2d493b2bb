"""A conversation as one arm leads it: scripted turns, and what the arm itself answered."""

from __future__ import annotations

from collections.abc import Mapping

from picospec.bench.data.prompts import Prompt

Message = Mapping[str, str]


class Conversation:
    """It holds the conversation that is under way; a scenario's first turn begins another."""

    def __init__(self) -> None:
        self._messages: list[Message] = []

    def before(self, prompt: Prompt) -> tuple[Message, ...]:
        """Return what the prompt follows; nothing where it is a question by itself. Raises
        ValueError where the turn before has no answer."""
        if prompt.turn == 0:
            system = [{"role": "system", "content": prompt.system}] if prompt.system else []
            self._messages = [*system]
        asked = sum(message["role"] == "user" for message in self._messages)
        if asked != prompt.turn:
            raise ValueError(f"{prompt.id}: {asked} turns before it have answers")
        return tuple(self._messages)

    def answered(self, prompt: Prompt, text: str) -> None:
        """Go on with an answer to the prompt."""
        self._messages += [
            {"role": "user", "content": prompt.prompt},
            {"role": "assistant", "content": text},
        ]
