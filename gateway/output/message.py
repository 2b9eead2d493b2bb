"""The parts of an assistant's message, and the message while it is being written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from picospec.gateway.grammars.json_schema import decode
from picospec.gateway.watching import Positions

FIELD: Final = "input"
"""The only argument of the function that the model is shown in place of a custom tool."""

_OPENING: Final = re.compile(rf'\s*\{{\s*"{FIELD}"\s*:\s*"')
_WHOLE: Final = re.compile(
    r"""(?:[^"\\]|\\["\\/bfnrt]|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}"""
    r"""|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})+"""
)
"""The part of a JSON string that is whole characters."""


@dataclass(frozen=True, slots=True)
class CallStart:
    """A tool call begins."""

    index: int
    """The number of calls of the message before this one."""

    id: str
    name: str
    custom: bool = False
    """The tool is a custom one: it takes a text."""


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of what call `index` gives its tool: arguments in JSON, or a text."""

    index: int
    text: str
    sources: tuple[Positions, ...] = ()
    """Where in the model's text it comes from."""

    custom: bool = False


CallPiece = CallStart | CallArguments


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a parser found besides content."""

    reasoning: str
    calls: tuple[CallPiece, ...]
    reasoning_tokens: int
    sources: tuple[Positions, ...] = ()
    """Where in the model's text the reasoning comes from."""


def whole_calls(pieces: Sequence[CallPiece]) -> list[tuple[CallStart, str]]:
    """Return the calls that begin among the pieces, each with all that it gives its tool."""
    texts: dict[int, str] = {}
    for piece in pieces:
        text = piece.text if isinstance(piece, CallArguments) else ""
        texts[piece.index] = texts.get(piece.index, "") + text
    starts = [piece for piece in pieces if isinstance(piece, CallStart)]
    return [(start, texts[start.index]) for start in starts]


def joined(parts: Sequence[Parsed]) -> Parsed:
    """Return what was found in several deltas as one."""
    return Parsed(
        "".join(part.reasoning for part in parts),
        tuple(_merged([piece for part in parts for piece in part.calls])),
        sum(part.reasoning_tokens for part in parts),
    )


class CustomInput:
    """Reads the text that a custom tool gets, {"input": "..."}, piece by piece. Arguments of
    another form are the text themselves, so that nothing is lost."""

    def __init__(self) -> None:
        self._held = ""
        self._begun = False

    def feed(self, piece: str) -> str:
        """Take more of the arguments, and return what there is of the text."""
        self._held += piece
        if not self._begun and (opening := _OPENING.match(self._held)):
            self._begun, self._held = True, self._held[opening.end() :]
        found = _WHOLE.match(self._held) if self._begun else None
        if found is None:
            return ""
        self._held = self._held[found.end() :]
        text: str = json.loads(f'"{found[0]}"', strict=False)
        return text

    def finish(self) -> str:
        """Return the rest: the arguments have ended."""
        if self._begun:
            return ""
        try:
            value = decode(self._held)
        except ValueError:
            return self._held
        text = value.get(FIELD) if isinstance(value, dict) else None
        return text if isinstance(text, str) else self._held


class Message:
    """Collects what a parser finds, until it is handed on to the client."""

    def __init__(
        self,
        new_id: Callable[[], str],
        *,
        parallel: bool = True,
        custom: frozenset[str] = frozenset(),
    ) -> None:
        """custom: the names of the tools that take a text."""
        self._new_id = new_id
        self._parallel = parallel
        self._custom = custom
        self._input: CustomInput | None = None
        self.calls = 0
        """The number of calls that have begun."""

        self.thinking = False
        """The text that comes next is reasoning."""

        self.complete = False
        """The only call that the client wants has ended. What comes after it is left out."""

        self._content = ""
        self._spans: list[range] = []
        self._reasoning = ""
        self._thoughts: list[range] = []
        self._pieces: list[CallPiece] = []
        self._end = 0  # what of the text the arguments so far come from

    def content(self, text: str, end: int) -> None:
        """Add content, which ends before character `end` of the model's text."""
        if text and not self.complete:
            self._content += text
            self._spans.append(range(end - len(text), end))

    def reasoning(self, text: str, end: int) -> None:
        """Add reasoning, which ends before character `end` of the model's text."""
        if text:
            self._reasoning += text
            self._thoughts.append(range(end - len(text), end))

    def begin_call(self, name: str) -> None:
        if self.complete:
            return
        custom = name in self._custom
        self._input = CustomInput() if custom else None
        self._pieces.append(CallStart(self.calls, self._new_id(), name, custom))
        self.calls += 1

    def arguments(self, text: str, end: int, *, rewritten: bool = False) -> None:
        """Add a piece of the arguments of the last call, which ends before character `end` of
        the model's text. rewritten: the model wrote it in another way."""
        if self._input is not None:
            self.input(self._input.feed(text), end)
        elif text and not self.complete:
            source = (end - 1,) * len(text) if rewritten else range(end - len(text), end)
            self._pieces.append(CallArguments(self.calls - 1, text, (source,)))
        self._end = end

    def input(self, text: str, end: int) -> None:
        """Add a piece of what a custom tool gets, read from before character `end`."""
        if text and not self.complete:
            sources = ((end - 1,) * len(text),)
            self._pieces.append(CallArguments(self.calls - 1, text, sources, custom=True))

    def end_call(self) -> None:
        if self._input is not None:
            self.input(self._input.finish(), self._end)
        self.complete = not self._parallel

    def take_content(self) -> tuple[str, list[range]]:
        """Return the content since the last time, and where it is in the model's text."""
        text, self._content = self._content, ""
        spans, self._spans = self._spans, []
        return text, spans

    def take_parsed(self, reasoning_tokens: int) -> Parsed:
        """Return what else there is since the last time."""
        calls, sources = tuple(_merged(self._pieces)), tuple(self._thoughts)
        parsed = Parsed(self._reasoning, calls, reasoning_tokens, sources)
        self._reasoning, self._pieces, self._thoughts = "", [], []
        return parsed


def _merged(pieces: list[CallPiece]) -> list[CallPiece]:
    """Join neighbouring pieces of one call's arguments, so that each becomes one event."""
    merged: list[CallPiece] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if isinstance(piece, CallArguments) and isinstance(last, CallArguments):
            text, sources = last.text + piece.text, last.sources + piece.sources
            merged[-1] = CallArguments(piece.index, text, sources, piece.custom)
        else:
            merged.append(piece)
    return merged
