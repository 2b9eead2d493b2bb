"""Defines the parts of an assistant's message, and collects a message while it is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from gateway.json_schemas import decode

FIELD: Final = "input"
"""The model is shown a function with this only argument in place of a custom tool."""

_OPENING: Final = re.compile(rf'\s*\{{\s*"{FIELD}"\s*:\s*"')
_WHOLE: Final = re.compile(
    r"""(?:[^"\\]|\\["\\/bfnrt]|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}"""
    r"""|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})+"""
)
"""Matches the part of a JSON string that consists of whole characters."""

_LITERAL: Final = re.compile(
    r"""\\(?=[^"\\/bfnrtu]|u[0-9a-fA-F]{0,3}[^0-9a-fA-F]|u[dD][c-fC-F][0-9a-fA-F]{2}"""
    r"""|u[dD][89abAB][0-9a-fA-F]{2}(?:[^\\]|\\(?:[^u]|u(?:[^dD]|[dD](?:[^c-fC-F]"""
    r"""|[c-fC-F][0-9a-fA-F]?[^0-9a-fA-F])))))"""
)
"""Matches a backslash that begins no character in JSON, once what follows it shows that."""

_CLOSING: Final = re.compile(r'"[\s}]*\Z')


@dataclass(frozen=True, slots=True)
class CallStart:
    """Reports that a tool call begins."""

    index: int
    """This many calls of the message come before this one."""

    id: str
    name: str
    custom: bool = False


@dataclass(frozen=True, slots=True)
class CallArguments:
    """Holds a piece of the input of call `index`: arguments in JSON, or a text."""

    index: int
    text: str
    custom: bool = False


CallPiece = CallStart | CallArguments


@dataclass(frozen=True, slots=True)
class Parsed:
    """Holds what a parser found besides content."""

    reasoning: str
    calls: tuple[CallPiece, ...]
    reasoning_tokens: int
    sources: tuple[range, ...] = ()
    """The reasoning comes from these positions in the model's text."""


def whole_calls(pieces: Sequence[CallPiece]) -> list[tuple[CallStart, str]]:
    """Return the calls that begin among the pieces, each with its whole input."""
    texts: dict[int, str] = {}
    for piece in pieces:
        text = piece.text if isinstance(piece, CallArguments) else ""
        texts[piece.index] = texts.get(piece.index, "") + text
    starts = [piece for piece in pieces if isinstance(piece, CallStart)]
    return [(start, texts[start.index]) for start in starts]


def joined(parts: Sequence[Parsed]) -> Parsed:
    """Return the results of several deltas joined into one."""
    return Parsed(
        "".join(part.reasoning for part in parts),
        tuple(_merged([piece for part in parts for piece in part.calls])),
        sum(part.reasoning_tokens for part in parts),
    )


class CustomInput:
    """Reads the text for a custom tool from {"input": "..."}, piece by piece. Arguments in
    another form become the text as they are, and so does what is no JSON within the text, so
    that nothing is lost."""

    def __init__(self) -> None:
        self._held = ""
        self._opening = ""

    def feed(self, piece: str) -> str:
        """Take more of the arguments, and return the next part of the text."""
        self._held += piece
        if not self._opening and (opening := _OPENING.match(self._held)):
            self._opening, self._held = opening[0], self._held[opening.end() :]
        if not self._opening:
            return ""
        text, end = _read(self._held, 0)
        self._held = self._held[end:]
        return text

    def finish(self) -> str:
        """Return the rest of the text, now that the arguments have ended."""
        try:
            value = decode(self._opening + self._held)
        except ValueError:
            return self._rest()
        if self._opening:
            return ""
        text = value.get(FIELD) if isinstance(value, dict) else None
        return text if isinstance(text, str) else self._held

    def _rest(self) -> str:
        """Return what is held, without the end of the form if the text has begun."""
        if not self._opening:
            return self._held
        rest = _CLOSING.sub("", self._held)
        text, end = _read(rest, 0)
        while end < len(rest):
            more, after = _read(rest, end + 1)
            text, end = text + rest[end] + more, after
        return text


def _read(written: str, end: int) -> tuple[str, int]:
    """Return what a JSON string says from `end` on, as far as that is clear, and its end."""
    texts = list[str]()
    while True:
        if match := _WHOLE.match(written, end):
            texts.append(json.loads(f'"{match[0]}"', strict=False))
        elif match := _LITERAL.match(written, end):
            texts.append(match[0])
        else:
            return "".join(texts), end
        end = match.end()


class _Passage:
    """Collects text, and its ranges in the model's text, until it is taken."""

    def __init__(self) -> None:
        self._text = ""
        self._spans: list[range] = []

    def add(self, text: str, end: int) -> None:
        """Add text, which ends before character `end` of the model's text."""
        self._text += text
        self._spans.append(range(end - len(text), end))

    def take(self) -> tuple[str, list[range]]:
        """Return what was added since the last call."""
        text, self._text = self._text, ""
        spans, self._spans = self._spans, []
        return text, spans


class ParsedMessage:
    """Collects what a parser finds until the client gets it."""

    def __init__(
        self,
        new_id: Callable[[], str],
        *,
        parallel: bool = True,
        custom: frozenset[str] = frozenset(),
    ) -> None:
        """custom: names of the tools that take a text."""
        self._new_id = new_id
        self._parallel = parallel
        self._custom = custom
        self._input: CustomInput | None = None
        self.calls = 0
        """This many calls have begun."""

        self.thinking = False
        """True while the next text is reasoning."""

        self.complete = False
        """True once the only call that the client wants has ended; all after it is left out."""

        self._content = _Passage()
        self._reasoning = _Passage()
        self._pieces: list[CallPiece] = []

    def content(self, text: str, end: int) -> None:
        """Add content, which ends before character `end` of the model's text."""
        if text and not self.complete:
            self._content.add(text, end)

    def reasoning(self, text: str, end: int) -> None:
        """Add reasoning, which ends before character `end` of the model's text."""
        if text:
            self._reasoning.add(text, end)

    def begin_call(self, name: str) -> None:
        if self.complete:
            return
        custom = name in self._custom
        self._input = CustomInput() if custom else None
        self._pieces.append(CallStart(self.calls, self._new_id(), name, custom))
        self.calls += 1

    def arguments(self, text: str) -> None:
        """Add a piece of the arguments of the last call."""
        if self._input is not None:
            self.input(self._input.feed(text))
        elif text and not self.complete:
            self._pieces.append(CallArguments(self.calls - 1, text))

    def input(self, text: str) -> None:
        """Add a piece of a custom tool's input."""
        if text and not self.complete:
            self._pieces.append(CallArguments(self.calls - 1, text, custom=True))

    def end_call(self) -> None:
        if self._input is not None:
            self.input(self._input.finish())
        self.complete = not self._parallel

    def take_content(self) -> tuple[str, list[range]]:
        """Return the content since the last call, and its ranges in the model's text."""
        return self._content.take()

    def take_parsed(self, reasoning_tokens: int) -> Parsed:
        """Return the reasoning and the calls since the last call of this method."""
        calls, self._pieces = tuple(_merged(self._pieces)), []
        reasoning, spans = self._reasoning.take()
        return Parsed(reasoning, calls, reasoning_tokens, tuple(spans))


def _merged(pieces: list[CallPiece]) -> list[CallPiece]:
    """Join neighbouring pieces of one call's arguments, so that each becomes one event."""
    merged: list[CallPiece] = []
    for _, run in groupby(pieces, lambda piece: isinstance(piece, CallArguments)):
        group = [*run]
        if arguments := [piece for piece in group if isinstance(piece, CallArguments)]:
            text = "".join(piece.text for piece in arguments)
            merged.append(CallArguments(arguments[-1].index, text, arguments[-1].custom))
        else:
            merged += group
    return merged
