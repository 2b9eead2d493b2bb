"""Writes the content of a message: its blocks, whole or as the events of a stream.

Blocks come one after the other, each with a number. A block begins, grows by deltas and ends
before the next one begins; a client joins the deltas without looking ahead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pydantic_core import from_json

from gateway.endpoints.answer import Json, parts_of
from gateway.output.detokenise import TextDelta
from gateway.output.message import CallStart, whole_calls

SIGNATURE: Final = "picospec"
"""Reasoning gets this signature: clients send it back only with one. Nobody checks it."""

_TEXT: Final[Json] = {"type": "text", "text": "", "citations": None}
_THINKING: Final[Json] = {"type": "thinking", "thinking": "", "signature": ""}


def content_of(whole: TextDelta) -> list[Json]:
    """Return the blocks of a message that is not streamed."""
    parsed = whole.parsed
    blocks: list[Json] = []
    if parsed is not None and parsed.reasoning:
        blocks.append({**_THINKING, "thinking": parsed.reasoning, "signature": SIGNATURE})
    if whole.text:
        blocks.append({**_TEXT, "text": whole.text})
    calls = whole_calls(parsed.calls if parsed is not None else ())
    return blocks + [{**_call(start), "input": _input(text)} for start, text in calls]


def _call(start: CallStart) -> Json:
    """Return a call that has no input yet."""
    name = start.id.removeprefix("call_")
    shown = start.id if name == start.id else f"toolu_{name}"
    call: Json = {"type": "tool_use", "id": shown, "name": start.name, "input": {}}
    return {**call, "caller": {"type": "direct"}}


def _input(arguments: str) -> object:
    """Return the object of a call's arguments; the complete part of it if the text is cut."""
    try:
        value = from_json(arguments, allow_partial="trailing-strings")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


class ContentEvents:
    """Makes the events of one message's content from its deltas, in order."""

    def __init__(self) -> None:
        self._index = -1
        self._open = ""
        """The open block has this type; "" means that none is open."""

    def read(self, delta: TextDelta) -> Iterator[Json]:
        """Yield the events of a delta."""
        for kind, text, start in parts_of(delta):
            if start is not None:
                yield from self._begin(_call(start))
            elif kind == "call":
                yield self._delta("input_json", text, "partial_json")
            elif text:
                block = _THINKING if kind == "reasoning" else _TEXT
                if self._open != block["type"]:
                    yield from self._begin(block)
                yield self._delta(self._open, text)

    def end(self) -> Iterator[Json]:
        """Yield the events that end the open block, if there is one."""
        if self._open == "thinking":
            yield self._delta("signature", SIGNATURE)
        if self._open:
            yield {"type": "content_block_stop", "index": self._index}
        self._open = ""

    def _begin(self, block: Json) -> Iterator[Json]:
        yield from self.end()
        self._index += 1
        self._open = str(block["type"])
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, kind: str, text: str, name: str = "") -> Json:
        delta = {"type": f"{kind}_delta", name or kind: text}
        return {"type": "content_block_delta", "index": self._index, "delta": delta}
