"""Renders chats in a process of its own, which a template may crash or bring to its limits.

The template comes from the target. The sandbox of Jinja bars what a template must not reach,
but not work without end: a loop, a power, a text that is multiplied. Even the compiler computes
constants. So a template is parsed and run here alone, and at a limit the system ends the
process; see `renderer`.

The process reads lines of JSON and answers each with one: first the template, then chats.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

from picospec.models.confined import limit_memory, limited_cpu
from picospec.models.tokenizing.chat_template import ChatTemplate

CPU_S: Final = 2.0
"""A chat takes no more processor time. One of 10,000 tokens takes a few milliseconds."""

MEMORY_BYTES: Final = 512 << 20
"""The process has no more address space; an idle one has a twentieth of it."""


def main() -> None:
    """Answer questions until the input ends."""
    limit_memory(MEMORY_BYTES)
    template: ChatTemplate | None = None
    for line in iter(sys.stdin.buffer.readline, b""):
        with limited_cpu(CPU_S):
            try:
                asked = json.loads(line)
                if template is None:
                    template = ChatTemplate(**asked)
                    answer: dict[str, object] = _properties(template)
                else:
                    answer = _rendered(template, asked)
            except ValueError as error:
                answer = {"error": str(error)}
            except MemoryError:
                answer = {"error": "the chat template takes too much memory"}
            encoded = json.dumps(answer).encode()
        sys.stdout.buffer.write(encoded + b"\n")
        sys.stdout.buffer.flush()


def _properties(template: ChatTemplate) -> dict[str, object]:
    return {"takes_tools": template.takes_tools}


def _rendered(template: ChatTemplate, asked: dict[str, Any]) -> dict[str, object]:
    try:
        return {"text": template.render(**asked)}
    except OverflowError as error:
        return {"too_long": str(error)}


if __name__ == "__main__":
    main()
