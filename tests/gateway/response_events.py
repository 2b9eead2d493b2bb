"""OpenAI's types of a response's events, and a text with reasoning and a call of a tool."""

from __future__ import annotations

from typing import Any

from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
CALL = '<tool_call>\n{"name": "n__f", "arguments": {"a": 1}}\n</tool_call>'
TEXT = f"<think>why</think>Let me see.\n{CALL}"
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}
TOOLS: Any = [{"type": "namespace", "name": "n", "description": "d", "tools": [FUNCTION]}]
