"""The second request of a chat with Claude Code 2.1: its fields, and texts of our own."""

from __future__ import annotations

from typing import Any

HEADERS = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,effort-2025-11-24",
    "x-claude-code-session-id": "5f2c",
    "x-api-key": "key",
}
PATH = "/v1/messages?beta=true"
CACHED = {"cache_control": {"type": "ephemeral"}}
NAMES = [f"Tool{number}" for number in range(22)] + ["Bash", "mcp__files__read"]
THOUGHT = {"type": "thinking", "thinking": "I look.", "signature": "s"}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "ls -a"}}
RESULT = {
    "type": "tool_result",
    "tool_use_id": "toolu_1",
    "content": "a.py",
    "is_error": False,
    **CACHED,
}


def text(said: str, **more: object) -> dict[str, object]:
    return {"type": "text", "text": said, **more}


def _tool(name: str) -> dict[str, object]:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"command": {"type": "string"}},
        "required": ["command"],
        "additionalProperties": False,
    }
    return {"name": name, "description": f"Does what {name} does.", "input_schema": schema}


def request(**more: object) -> dict[str, Any]:
    return {
        "model": "bytes-1",
        "max_tokens": 32000,
        "stream": True,
        "metadata": {"user_id": '{"device_id": "d", "session_id": "s"}'},
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "system": [
            text("x-anthropic-billing-header: cc_version=2.1; cch=7f3a;"),
            text("You help with code.", **CACHED),
            text("The directory is /tmp.", **CACHED),
        ],
        "messages": [
            {"role": "user", "content": [text("A reminder."), text("What is here?", **CACHED)]},
            {"role": "system", "content": "The date has changed."},
            {"role": "assistant", "content": [THOUGHT, CALL]},
            {"role": "user", "content": [RESULT]},
        ],
        "tools": [_tool(name) for name in NAMES],
        **more,
    }
