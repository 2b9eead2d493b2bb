"""Converts the messages of a chat to the form that its template takes, as vLLM does.

* A content is a text, in which empty parts leave no trace; or, for a template that reads
  parts, a list of them, except for a tool's result.
* A template that refuses system messages after the first message gets a single one, which is
  the first; see `system_first`.
* Many templates do not know "developer", OpenAI's newer name for "system". For those, such
  messages become system messages, and if a chat has any of them, all of its system messages
  are joined into one, which is its first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

Json = Mapping[str, object]


def shaped(messages: Sequence[Json], template: str, *, takes_parts: bool) -> list[Json]:
    """Return the messages as a template takes them. template: its text."""
    shaped_messages = [_with_content(message, takes_parts=takes_parts) for message in messages]
    knows_developers = any(f"{quote}developer{quote}" in template for quote in "\"'")
    if knows_developers or all(message["role"] != "developer" for message in shaped_messages):
        return shaped_messages
    return system_first([_as_system(message) for message in shaped_messages])


def _with_content(message: Json, *, takes_parts: bool) -> Json:
    parts = _parts(message.get("content"))
    if not takes_parts:
        return {**message, "content": _text(part for part in parts if part["text"])}
    return {**message, "content": _text(parts) if message["role"] == "tool" else parts}


def _parts(content: object) -> list[dict[str, str]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return list(content) if isinstance(content, list | tuple) else []


def _text(parts: Iterable[dict[str, str]]) -> str:
    return "\n".join(part["text"] for part in parts)


def _as_system(message: Json) -> Json:
    return {**message, "role": "system"} if message["role"] == "developer" else message


def system_first(messages: Sequence[Json]) -> list[Json]:
    """Return the messages with all system messages, if any, joined into the first message."""
    system = [message for message in messages if message["role"] == "system"]
    if not system or (len(system) == 1 and messages[0] is system[0]):
        return list(messages)
    texts = [_text(_parts(message["content"])) for message in system]
    first = {"role": "system", "content": "\n\n".join(text for text in texts if text)}
    return [first, *(message for message in messages if message["role"] != "system")]
