"""Reads a text in pieces by one format, and puts the message together as a client does."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from hypothesis import strategies as st

from picospec.gateway.output.formats.base import Format
from picospec.gateway.output.message import CallArguments, CallStart, Message, Parsed
from picospec.gateway.output.reading import Incoming, Steps

STRING = {"type": "string"}
INTEGER = {"type": "integer"}
Tools = Mapping[str, Mapping[str, object]]
TOOLS: Tools = {
    "weather": {
        "type": "object",
        "properties": {"city": STRING, "days": INTEGER, "when": {}},
        "required": ["city"],
    },
    "now": {"type": "object", "properties": {}},
}


@dataclass
class Call:
    id: str
    name: str
    arguments: str = ""


@dataclass
class Read:
    """The message so far."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    complete: bool = False

    def add(self, content: str, parsed: Parsed) -> None:
        self.content += content
        self.reasoning += parsed.reasoning
        for piece in parsed.calls:
            match piece:
                case CallStart():
                    assert piece.index == len(self.calls)
                    self.calls.append(Call(piece.id, piece.name))
                case CallArguments():
                    assert piece.index == len(self.calls) - 1
                    self.calls[piece.index].arguments += piece.text

    @property
    def decoded(self) -> list[tuple[str, object]]:
        """Return the calls with their arguments as values."""
        return [(call.name, json.loads(call.arguments)) for call in self.calls]


Parse = Callable[[Incoming, Message], Steps[None]]


def run(parse: Parse, pieces: Iterable[str], *, parallel: bool = True) -> list[Read]:
    """Return the message after each piece, and at last the whole one."""
    ids = (f"id{number}" for number in itertools.count())
    message = Message(lambda: next(ids), parallel=parallel)
    text = Incoming()
    steps = parse(text, message)
    next(steps, None)
    moments, whole = [], Read()
    for piece in (*pieces, None):
        text.feed(piece or "")
        text.ended = piece is None
        next(steps, None)
        whole.add(message.take_content()[0], message.take_parsed(0))
        whole.complete = message.complete
        moments.append(
            Read(whole.content, whole.reasoning, [Call(**vars(c)) for c in whole.calls])
        )
        if message.complete:
            break
    return [*moments, whole]


def moments(
    form: Format, pieces: Iterable[str], *, tools: Tools = TOOLS, parallel: bool = True
) -> list[Read]:
    """Return the message that is read by a format, after each piece, and at last the whole."""
    return run(lambda text, out: form.read(text, out, tools), pieces, parallel=parallel)


def read(
    form: Format, pieces: Iterable[str], *, tools: Tools = TOOLS, parallel: bool = True
) -> Read:
    return moments(form, pieces, tools=tools, parallel=parallel)[-1]


S = TypeVar("S", str, bytes, range)


def split(whole: S, cuts: Sequence[int]) -> list[S]:
    """Cut a text, bytes, or numbers anywhere."""
    ends = sorted({cut % (len(whole) + 1) for cut in cuts} | {len(whole)})
    return [whole[a:b] for a, b in itertools.pairwise([0, *ends])]


CUTS = st.lists(st.integers(0, 400), max_size=12)
