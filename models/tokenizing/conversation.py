"""Puts the messages of a chat into the form that its template takes, as vLLM does.

* A content is a list of parts for a template that reads parts, and else one text.
* Of "developer", OpenAI's newer name for "system", many templates have not heard. For those
  such messages are system messages, and a chat that has any of them has all of its system
  messages as one, which is its first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Json = Mapping[str, object]


def shaped(messages: Sequence[Json], template: str, *, takes_parts: bool) -> list[Json]:
    """Return the messages as a template gets them. template: its text."""
    found = [_with_content(message, takes_parts=takes_parts) for message in messages]
    knows_developers = any(f"{quote}developer{quote}" in template for quote in "\"'")
    if knows_developers or all(message["role"] != "developer" for message in found):
        return found
    return _merged([_as_system(message) for message in found])


def _with_content(message: Json, *, takes_parts: bool) -> Json:
    content = message.get("content")
    if not takes_parts or message["role"] == "tool":
        return {**message, "content": text_of(content)}
    if isinstance(content, str):
        return {**message, "content": [{"type": "text", "text": content}]}
    return {**message, "content": content or []}


def text_of(content: object) -> str:
    """Return a content as a text: its parts, joined by newlines."""
    match content:
        case str():
            return content
        case list() | tuple():
            return "\n".join(part["text"] for part in content)
    return ""


def _as_system(message: Json) -> Json:
    return {**message, "role": "system"} if message["role"] == "developer" else message


def _merged(messages: Sequence[Json]) -> list[Json]:
    """Return the messages with one system message, which comes first."""
    system = [message for message in messages if message["role"] == "system"]
    if len(system) == 1 and messages[0] is system[0]:
        return list(messages)
    texts = [text_of(message["content"]) for message in system]
    first = {"role": "system", "content": "\n\n".join(text for text in texts if text)}
    return [first, *(message for message in messages if message["role"] != "system")]
