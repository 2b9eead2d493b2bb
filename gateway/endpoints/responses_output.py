"""Builds the items of an answer, and the events that report their growth.

An item is open until the next one begins or the answer ends. It is added, grows by deltas,
and is done. An event names the index of its item; `answer` numbers the events.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from gateway.endpoints.answer import parts_of
from gateway.endpoints.chat_answer import logprobs_of
from gateway.endpoints.responses_items import sealed
from gateway.output.detokenise import TextDelta

Json = dict[str, object]
Event = tuple[str, Json]
Status = Literal["in_progress", "completed", "incomplete"]

PREFIX: Final = "resp_"
REPEATS: Final = 4
"""A stream ends with four events that have all log-probabilities."""

_ITEM_ID: Final = re.compile(r"[a-z]+_([0-9a-f]{32})_([0-9]{1,6})")


@dataclass(frozen=True, slots=True)
class Kind:
    """Defines how events report one type of item."""

    type: str
    prefix: str
    """The item's id begins with this."""

    stem: str
    """The names of the events of the item's text begin with this. If the item has parts, this
    is also the type of the only part."""

    field: str = "text"
    """The item's text is in this field."""

    @property
    def has_part(self) -> bool:
        return self.field == "text"


REASONING: Final = Kind("reasoning", "rs", "reasoning_text")
MESSAGE: Final = Kind("message", "msg", "output_text")
FUNCTION: Final = Kind("function_call", "fc", "function_call_arguments", "arguments")
CUSTOM: Final = Kind("custom_tool_call", "fc", "custom_tool_call_input", "input")
_OF_PARTS: Final[Mapping[str, tuple[Kind, Json]]] = {
    "reasoning": (REASONING, {"summary": []}),
    "text": (MESSAGE, {"role": "assistant"}),
}
"""Maps each kind of part of an answer to its kind of item, and to that item's own fields."""


class Growing:
    """Builds an open item and its events."""

    def __init__(self, kind: Kind, key: str, place: int, head: Json) -> None:
        """head: fields that only items of this kind have."""
        self.kind = kind
        self.text = ""
        self._logprobs: list[object] = []
        self._place: Json = {"output_index": place}
        self._head: Json = {"type": kind.type, "id": f"{kind.prefix}_{key}_{place}", **head}
        index = {"content_index": 0} if kind.has_part else {}
        self._at: Json = {"item_id": self._head["id"], **self._place, **index}

    def part(self) -> Json:
        """Return the only part of a message or of reasoning."""
        more = {"annotations": [], "logprobs": self._logprobs} if self.kind is MESSAGE else {}
        return {"type": self.kind.stem, "text": self.text, **more}

    def item(self, status: Status, *, seals: bool = False) -> Json:
        """Return the item with that status. seals: include its reasoning also as
        `encrypted_content`."""
        content = [] if status == "in_progress" else [self.part()]
        if self.kind is REASONING:
            secret = {"encrypted_content": sealed(self.text)} if seals else {}
            return {**self._head, **secret, "content": content} if content else self._head
        if self.kind is MESSAGE:
            return {**self._head, "status": status, "content": content}
        return {**self._head, self.kind.field: self.text, "status": status}

    def begin(self) -> Iterator[Event]:
        item = self.item("in_progress")
        yield "response.output_item.added", {**self._place, "item": item}
        if self.kind.has_part:
            yield "response.content_part.added", {**self._at, "part": self.part()}

    def grow(self, text: str, logprobs: Sequence[object]) -> Iterator[Event]:
        self.text += text
        self._logprobs += logprobs
        more = {"logprobs": logprobs} if self.kind is MESSAGE else {}
        yield f"response.{self.kind.stem}.delta", {**self._at, "delta": text, **more}

    def end(self, item: Json) -> Iterator[Event]:
        """Yield the events that report the end of the item. item: the completed item."""
        done: Json = {self.kind.field: self.text}
        if self.kind is MESSAGE:
            done["logprobs"] = self._logprobs
        elif not self.kind.has_part:
            done["name"] = item["name"]
        yield f"response.{self.kind.stem}.done", {**self._at, **done}
        if self.kind.has_part:
            yield "response.content_part.done", {**self._at, "part": self.part()}
        yield "response.output_item.done", {**self._place, "item": item}


class Output:
    """Builds all items of an answer."""

    def __init__(self, key: str, called: Mapping[str, Json], *, seals: bool) -> None:
        """key: part of the items' ids, by which `place_of` finds the items again. called: maps
        the chat's names of tools to the names in calls. seals: include reasoning also as
        `encrypted_content`."""
        self.items: list[Json] = []
        """These items have ended."""

        self._key = key
        self._called = called
        self._seals = seals
        self._open: Growing | None = None

    def read(self, delta: TextDelta) -> Iterator[Event]:
        """Add a delta to the items, and yield the events that report it."""
        for kind, text, start in parts_of(delta):
            if start is not None:
                called = self._called.get(start.name, {"name": start.name})
                of = CUSTOM if start.custom else FUNCTION
                yield from self._begin(of, {"call_id": start.id, **called})
                continue
            if kind != "call" and not (self._open and self._open.kind is _OF_PARTS[kind][0]):
                yield from self._begin(*_OF_PARTS[kind])
            if self._open is not None:
                logprobs = delta.written or logprobs_of(delta.entries)
                yield from self._open.grow(text, logprobs if kind == "text" else ())
        if delta.finish is not None:
            yield from self.end("incomplete" if delta.finish == "length" else "completed")

    def so_far(self) -> list[Json]:
        """Return the items, also the open one, with what it has."""
        if self._open is None:
            return self.items
        item = self._open.item("incomplete", seals=self._seals)
        return [*self.items, item | ({"status": "in_progress"} if "status" in item else {})]

    def _begin(self, kind: Kind, head: Json) -> Iterator[Event]:
        yield from self.end("completed")
        self._open = Growing(kind, self._key, len(self.items), head)
        yield from self._open.begin()

    def end(self, status: Status) -> Iterator[Event]:
        """End the open item, if any, and yield the events that report it."""
        if self._open is not None:
            item = self._open.item(status, seals=self._seals)
            yield from self._open.end(item)
            self.items.append(item)
            self._open = None


def place_of(item_id: str) -> tuple[str, int]:
    """Return the id of the response that contains an item, and the item's index there; the id
    is "" if the item is not ours."""
    match = _ITEM_ID.fullmatch(item_id)
    return (f"{PREFIX}{match[1]}", int(match[2])) if match else ("", 0)
