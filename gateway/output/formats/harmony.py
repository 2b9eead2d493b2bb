"""Reads the messages of gpt-oss (Harmony), each with a header that names its channel.

    <|channel|>analysis<|message|>...<|end|>
    <|start|>assistant<|channel|>final<|message|>...<|return|>
    <|channel|>commentary to=functions.name <|constrain|>json<|message|>{...}<|call|>

The prompt ends with `<|start|>assistant`. Headers and channels are read as vLLM reads them.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from gateway.json_schemas import Schemas
from gateway.output.formats.base import ToolFormat
from gateway.output.message import ParsedMessage
from gateway.output.reading import Incoming, Malformed, Steps

_NAMES: Final = ("start", "channel", "constrain", "message", "end", "return", "call")
_SPELLING: Final = {f"<|{name}|>": chr(0xFDD0 + at) for at, name in enumerate(_NAMES)}
"""The parser sees these noncharacters in place of markers, which ordinary text may spell."""

_START, _CHANNEL, _CONSTRAIN, _MESSAGE, *_ENDS = _SPELLING.values()
_TEXTS: Final = {ord(seen): text for text, seen in _SPELLING.items()}
_CHANNEL_NAME: Final = re.compile(rf"{_CHANNEL}([^\s<{_START}-{_ENDS[-1]}]*)")
_NO_FUNCTION: Final = re.compile(
    r"(assistant|functions\.)?\Z|<\||(python|browser|container)(\.|\Z)"
)
"""A recipient that begins so is no function of the client."""

_Kind = Literal["reasoning", "content", "call", ""]


class Harmony(ToolFormat):
    has_channels = True
    markers = tuple(_SPELLING)
    spelling = _SPELLING
    trigger = ""

    def read(self, text: Incoming, out: ParsedMessage, tools: Schemas) -> Steps[None]:
        shown = _Shown(out)
        while not out.complete and (yield from text.more()):
            try:
                yield from text.until(_MESSAGE)
            except Malformed:  # the text is cut within a header
                shown.begin("content")
                shown.add(text.consume(len(text.held)), text.consumed)
                return
            kind, name = _meaning(text.consume())
            yield from text.expect(_MESSAGE)
            text.consume()
            shown.begin("" if kind == "call" and not tools else kind, name)
            yield from text.pass_on(tuple(_ENDS), shown.add)
            shown.end()
            yield from text.pass_on((_START,), lambda *_: None)


class _Shown:
    """Adds the text of one message after the other to what the client gets. A line break
    comes between messages of one kind, as in vLLM."""

    def __init__(self, out: ParsedMessage) -> None:
        self._out = out
        self._kind: _Kind = ""
        self._separator = ""
        self._begun = set[_Kind]()

    def begin(self, kind: _Kind, name: str = "") -> None:
        self._kind = kind
        self._separator = "\n" if kind in self._begun else ""
        self._out.thinking = kind == "reasoning"
        if kind == "call":
            self._out.begin_call(name)

    def add(self, piece: str, end: int) -> None:
        text = piece.translate(_TEXTS)
        if not text:
            return
        if self._kind == "call":
            self._out.arguments(text)
        elif self._kind:
            add = self._out.content if self._kind == "content" else self._out.reasoning
            add(self._separator + text, end)
            self._begun.add(self._kind)
            self._separator = ""

    def end(self) -> None:
        self._out.thinking = False
        if self._kind == "call":
            self._out.end_call()


def _meaning(header: str) -> tuple[_Kind, str]:
    """Return what kind of text follows a header, and the name of the function that gets it."""
    channel = _CHANNEL_NAME.search(header)
    rest = header.replace(channel[0], "", 1) if channel else header
    words = rest.removeprefix(_START).replace(_CONSTRAIN, f" {_CONSTRAIN}").split()
    if words[:1] == ["assistant"]:
        del words[0]
    elif header.startswith(_START):
        return "", ""
    no_channel = channel is not None and not channel[1]
    if no_channel or len(words) > 2 or any(word.startswith("to=") for word in words[1:]):
        return "", ""
    recipient = words[0].removeprefix("to=").partition(_CONSTRAIN)[0] if words else ""
    recipient = recipient.translate(_TEXTS)
    if recipient and not _NO_FUNCTION.match(recipient):
        return "call", recipient.removeprefix("functions.")
    name = channel[1] if channel else ""
    kinds: dict[str, _Kind] = {"analysis": "reasoning", "final": "content"}
    if name == "commentary" and not recipient:
        return "content", ""
    return kinds.get(name, ""), ""
