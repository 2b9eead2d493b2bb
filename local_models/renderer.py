"""Renders chats in processes of their own, which a template may crash or bring to its limits.

The template comes from the target. Jinja's sandbox bars forbidden access, but not endless
work: a loop, a power, a text that is multiplied. Even the compiler computes constants. So a
template is parsed and run in such a process only, and the system ends the process at a limit.
A chat that takes too long is lost together with its process. Other chats have processes of
their own, one for each thread that is rendering.

Such a process answers each JSON line with one: first the template, then chats.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from gateway.system import limit_memory, limited_cpu
from local_models.confined import Worker, serve
from local_models.template import MAX_BYTES, ChatTemplate
from local_models.template_messages import Json

CPU_S: Final = 2.0
"""To render a chat takes at most this processor time, or it gets a 400. One of 10,000 tokens
takes some milliseconds."""

MEMORY_BYTES: Final = 512 << 20
"""The process that renders chats has at most this address space; an idle process uses a
twentieth of it."""

START_TIMEOUT_S: Final = 60.0
"""A process that does not start within this time is given up. A start takes a fifth of a second
on an idle machine."""

ANSWER_TIMEOUT_S: Final = 10.0
"""A chat that is not rendered within this time is given up. The process limits its processor
time, which takes longer on a busy machine."""

_MAX_ESCAPED: Final = 6
"""A byte of text takes at most this many bytes of JSON."""

_MAX_OTHER_BYTES: Final = 1 << 20
"""An answer has at most this many bytes beside the text."""


class Overrun(ValueError):
    """The template takes more time or memory for a chat than it may."""

    def __init__(self) -> None:
        super().__init__(f"the chat template takes more than {CPU_S:g} s, or too much memory")


class Renderer:
    """Renders as a ChatTemplate does, in another process. variables: see there. Raises
    ValueError if the template cannot be parsed, or OSError if no process can be started."""

    def __init__(self, text: str, variables: Json) -> None:
        self.text = text
        self._variables = variables
        self._idle: list[Worker] = []
        self.takes_tools = False
        self._idle.append(self._started())

    def render(
        self,
        messages: Sequence[Json],
        tools: Sequence[Json],
        options: Json,
        max_bytes: int = MAX_BYTES,
    ) -> str:
        """See ChatTemplate.render. Several threads may call it at once."""
        chat = {
            "messages": messages,
            "tools": tools,
            "options": options,
            "max_bytes": max_bytes,
        }
        answer = self._ask(worker := self._taken(), chat, ANSWER_TIMEOUT_S, max_bytes)
        self._idle.append(worker)
        if reason := answer.get("error"):
            raise ValueError(reason)
        if reason := answer.get("too_long"):
            raise OverflowError(reason)
        return str(answer["text"])

    def _taken(self) -> Worker:
        """Return a process that no other thread uses."""
        with suppress(IndexError):
            while (worker := self._idle.pop()).process.poll() is not None:
                worker.end()
            return worker
        return self._started()

    def _started(self) -> Worker:
        """Start a process with the template. Raises ValueError."""
        worker = Worker("local_models.renderer")
        template = {"text": self.text, "variables": dict(self._variables)}
        answer = self._ask(worker, template, START_TIMEOUT_S, 0)
        if reason := answer.get("error"):
            raise ValueError(reason)
        self.takes_tools = bool(answer["takes_tools"])
        return worker

    def _ask(
        self, worker: Worker, question: Json, within_s: float, text_bytes: int
    ) -> dict[str, Any]:
        max_bytes = _MAX_ESCAPED * text_bytes + _MAX_OTHER_BYTES
        try:
            answer = worker.ask(json.dumps(question).encode(), within_s, max_bytes)
        except (EOFError, OSError) as error:
            raise Overrun from error
        reply: dict[str, Any] = json.loads(answer)
        return reply


def main() -> None:
    """Answer questions until the input ends."""
    limit_memory(MEMORY_BYTES)
    templates: list[ChatTemplate] = []

    def answer(line: bytes) -> bytes:
        with limited_cpu(CPU_S):
            try:
                reply = _answered(json.loads(line), templates)
            except ValueError as error:
                reply = {"error": str(error)}
            except OverflowError as error:
                reply = {"too_long": str(error)}
            except MemoryError:
                reply = {"error": "the chat template takes too much memory"}
            return json.dumps(reply).encode()

    serve(answer)


def _answered(request: dict[str, Any], templates: list[ChatTemplate]) -> dict[str, object]:
    if templates:
        return {"text": templates[0].render(**request)}
    templates.append(ChatTemplate(**request))
    return {"takes_tools": templates[0].takes_tools}


if __name__ == "__main__":
    main()
