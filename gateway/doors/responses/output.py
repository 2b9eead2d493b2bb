"""The items of an answer while they grow, and the events that tell of it.

An item is open until the next one begins or the answer ends. It is added, grows by deltas, and
is done. What an event is about is named by the item's place; `answer` numbers the events.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

from picospec.gateway.doors.chat.answer import logprobs_of
from picospec.gateway.doors.responses.items import sealed
from picospec.gateway.output.detokenise import TextDelta
from picospec.gateway.output.message import CallPiece, CallStart

Json = dict[str, object]
Event = tuple[str, Json]
Status = Literal["in_progress", "completed", "incomplete"]

PREFIX: Final = "resp_"
_FUNCTION: Final = ("function_call", "arguments", "function_call_arguments")
_CUSTOM: Final = ("custom_tool_call", "input", "custom_tool_call_input")
"""The type of a call, the field with what its tool gets, and how its events begin."""

_ITEM_ID: Final = re.compile(r"[a-z]+_([0-9a-f]{32})_([0-9]{1,6})")


class Growing(ABC):
    """An item that is open."""

    def __init__(self, id: str, place: int) -> None:
        self.id = id
        self.at: Json = {"item_id": id, "output_index": place}
        self.place: Json = {"output_index": place}
        self.text = ""

    @abstractmethod
    def item(self, status: Status) -> Json:
        """Return the item as it is in that state."""

    def begin(self) -> Iterator[Event]:
        yield "response.output_item.added", {**self.place, "item": self.item("in_progress")}

    def end(self, status: Status) -> Iterator[Event]:
        yield "response.output_item.done", {**self.place, "item": self.item(status)}


class GrowingText(Growing):
    """An item with one part, a text."""

    part_type: str

    def __init__(self, id: str, place: int) -> None:
        super().__init__(id, place)
        self.at["content_index"] = 0

    def part(self) -> Json:
        return {"type": self.part_type, "text": self.text}

    def begin(self) -> Iterator[Event]:
        yield from super().begin()
        yield "response.content_part.added", {**self.at, "part": self.part()}

    def grow(self, text: str, **more: object) -> Iterator[Event]:
        self.text += text
        yield f"response.{self.part_type}.delta", {**self.at, "delta": text, **more}

    def end(self, status: Status, **more: object) -> Iterator[Event]:
        yield f"response.{self.part_type}.done", {**self.at, "text": self.text, **more}
        yield "response.content_part.done", {**self.at, "part": self.part()}
        yield from super().end(status)


class GrowingReasoning(GrowingText):
    part_type = "reasoning_text"

    def __init__(self, id: str, place: int, *, seals: bool) -> None:
        """seals: the client wants it as `encrypted_content`, too."""
        super().__init__(id, place)
        self._seals = seals

    def item(self, status: Status) -> Json:
        item: Json = {"type": "reasoning", "id": self.id, "summary": []}
        if status == "in_progress":
            return item
        if self._seals:
            item["encrypted_content"] = sealed(self.text)
        return {**item, "content": [self.part()]}


class GrowingMessage(GrowingText):
    part_type = "output_text"

    def __init__(self, id: str, place: int) -> None:
        super().__init__(id, place)
        self._logprobs: list[Json] = []

    def part(self) -> Json:
        return {**super().part(), "annotations": [], "logprobs": self._logprobs}

    def item(self, status: Status) -> Json:
        content = [] if status == "in_progress" else [self.part()]
        item: Json = {"type": "message", "id": self.id, "role": "assistant"}
        return {**item, "status": status, "content": content}

    def grow_with(self, text: str, logprobs: Sequence[Json]) -> Iterator[Event]:
        self._logprobs.extend(logprobs)
        return self.grow(text, logprobs=logprobs)

    def end(self, status: Status, **more: object) -> Iterator[Event]:
        return super().end(status, logprobs=self._logprobs)


class GrowingCall(Growing):
    def __init__(self, id: str, place: int, start: CallStart, called: Json) -> None:
        """called: how the call names its tool."""
        super().__init__(id, place)
        kind, self._field, stem = _CUSTOM if start.custom else _FUNCTION
        self._stem = f"response.{stem}"
        self._head: Json = {"type": kind, "id": id, "call_id": start.id, **called}

    def item(self, status: Status) -> Json:
        return {**self._head, self._field: self.text, "status": status}

    def grow(self, text: str) -> Iterator[Event]:
        self.text += text
        yield f"{self._stem}.delta", {**self.at, "delta": text}

    def end(self, status: Status) -> Iterator[Event]:
        done = {"name": self._head["name"], self._field: self.text}
        yield f"{self._stem}.done", {**self.at, **done}
        yield from super().end(status)


class Output:
    """All items of an answer."""

    def __init__(self, key: str, called: Mapping[str, Json], *, seals: bool) -> None:
        """key: what the ids of the items have, by which `place_of` finds them again. called:
        how calls name their tools, by the names of the chat. seals: reasoning is wanted as
        `encrypted_content`, too."""
        self.items: list[Json] = []
        """Those that have ended."""

        self._key = key
        self._called = called
        self._seals = seals
        self._open: Growing | None = None

    def read(self, delta: TextDelta) -> Iterator[Event]:
        """Add what a delta shows; yield the events that tell of it."""
        parsed = delta.parsed
        if parsed is not None and parsed.reasoning:
            yield from self._read_reasoning(parsed.reasoning)
        if delta.text or delta.entries:
            yield from self._read_text(delta)
        for piece in parsed.calls if parsed is not None else ():
            yield from self._read_call(piece)
        if delta.finish is not None:
            yield from self._end("incomplete" if delta.finish == "length" else "completed")

    def _read_reasoning(self, text: str) -> Iterator[Event]:
        item = self._open
        if not isinstance(item, GrowingReasoning):
            item = GrowingReasoning(*self._next("rs"), seals=self._seals)
            yield from self._begin(item)
        yield from item.grow(text)

    def _read_text(self, delta: TextDelta) -> Iterator[Event]:
        item = self._open
        if not isinstance(item, GrowingMessage):
            item = GrowingMessage(*self._next("msg"))
            yield from self._begin(item)
        yield from item.grow_with(delta.text, logprobs_of(delta.entries))

    def _read_call(self, piece: CallPiece) -> Iterator[Event]:
        if isinstance(piece, CallStart):
            called = self._called.get(piece.name, {"name": piece.name})
            yield from self._begin(GrowingCall(*self._next("fc"), piece, called))
        elif isinstance(self._open, GrowingCall):
            yield from self._open.grow(piece.text)

    def _next(self, prefix: str) -> tuple[str, int]:
        place = len(self.items) + (self._open is not None)
        return f"{prefix}_{self._key}_{place}", place

    def _begin(self, item: Growing) -> Iterator[Event]:
        yield from self._end("completed")
        self._open = item
        yield from item.begin()

    def _end(self, status: Status) -> Iterator[Event]:
        if self._open is not None:
            yield from self._open.end(status)
            self.items.append(self._open.item(status))
            self._open = None


def place_of(item_id: str) -> tuple[str, int]:
    """Return the id of the response that an item came in, and its place; "" for an item of none
    of ours."""
    found = _ITEM_ID.fullmatch(item_id)
    return (f"{PREFIX}{found[1]}", int(found[2])) if found else ("", 0)
