"""Reads Mistral's calls: [TOOL_CALLS][{...}, {...}], or newer [TOOL_CALLS]name[ARGS]{...}."""

from __future__ import annotations

import re
from functools import partial
from typing import Final

from gateway.grammars import Special, literal, marker, repeated
from gateway.json_schemas import Schemas
from gateway.output.formats.base import ToolFormat, read_calls
from gateway.output.formats.json_calls import (
    JsonCall,
    arguments_rules,
    json_call_rules,
    stream_arguments,
)
from gateway.output.message import ParsedMessage
from gateway.output.reading import Incoming, Malformed, Steps

_OPEN: Final = "[TOOL_CALLS]"
_ID: Final = "[CALL_ID]"
_ARGUMENTS: Final = "[ARGS]"
_NAME: Final = re.compile(r"[\w.-]*")


class Mistral(ToolFormat):
    markers = (_OPEN, _ID, _ARGUMENTS)
    trigger = _OPEN
    id_length = 9
    """Mistral's templates check the length."""

    def read(self, text: Incoming, out: ParsedMessage, tools: Schemas) -> Steps[None]:
        yield from read_calls(text, out, (_OPEN,), partial(_call, text, out))

    def calls(self, tools: Schemas, special: Special, *, parallel: bool) -> str:
        if _ARGUMENTS not in special:
            array = repeated("object", '", "', parallel=parallel)
            return f'calls: " "? "[" {array} "]"\n{json_call_rules(tools, "arguments")}'
        named = [
            f"{literal(name)} {marker(_ARGUMENTS, special)} arguments_{index}"
            for index, name in enumerate(tools)
        ]
        calls = repeated("call", marker(_OPEN, special), parallel=parallel)
        return f"calls: {calls}\ncall: {' | '.join(named)}\n{arguments_rules(tools)}"


def _call(text: Incoming, out: ParsedMessage) -> Steps[None]:
    yield from text.expect(_OPEN)
    yield from text.space()
    if (yield from text.take("[")):
        yield from _array(text, out)
    else:
        yield from _named(text, out)


def _array(text: Incoming, out: ParsedMessage) -> Steps[None]:
    while True:
        yield from text.space()
        yield from JsonCall(text, out).read()
        yield from text.space()
        if (yield from text.take("]")):
            return
        yield from text.expect(",")


def _named(text: Incoming, out: ParsedMessage) -> Steps[None]:
    """Read name[ARGS]{...}, where [CALL_ID]id may follow the name, and [ARGS] be absent."""
    name = yield from text.match(_NAME)
    if (yield from text.take(_ID)):
        yield from text.match(_NAME)
    yield from text.take(_ARGUMENTS)
    yield from text.space()
    if not name or (yield from text.peek()) != "{":
        raise Malformed("a call has a name and arguments")
    yield from stream_arguments(text, out, name)
