"""Renders chats in a process of its own, which a template may crash or bring to its limits.

The template comes from the target. The sandbox of Jinja bars what a template must not reach,
but not work without end: a loop, a power, a text that is multiplied. Even the compiler computes
constants. So a template is parsed and run here alone, and at a limit the system ends the
process; see `renderer`.

The process reads lines of JSON and answers each with one: first the template, then chats.
"""

from __future__ import annotations

import json
from typing import Any, Final

from picospec.models.confined import limit_memory, limited_cpu, serve
from picospec.models.tokenizing.chat_template import ChatTemplate

CPU_S: Final = 2.0
"""A chat takes no more processor time. One of 10,000 tokens takes a few milliseconds."""

MEMORY_BYTES: Final = 512 << 20
"""The process has no more address space; an idle one has a twentieth of it."""


def main() -> None:
    """Answer questions until the input ends."""
    limit_memory(MEMORY_BYTES)
    templates: list[ChatTemplate] = []

    def answer(line: bytes) -> bytes:
        with limited_cpu(CPU_S):
            try:
                found = _answered(json.loads(line), templates)
            except ValueError as error:
                found = {"error": str(error)}
            except OverflowError as error:
                found = {"too_long": str(error)}
            except MemoryError:
                found = {"error": "the chat template takes too much memory"}
            return json.dumps(found).encode()

    serve(answer)


def _answered(asked: dict[str, Any], templates: list[ChatTemplate]) -> dict[str, object]:
    if templates:
        return {"text": templates[0].render(**asked)}
    templates.append(ChatTemplate(**asked))
    return {"takes_tools": templates[0].takes_tools}


if __name__ == "__main__":
    main()
