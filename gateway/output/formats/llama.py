"""Reads calls of Llama 3: {"name": ..., "parameters": {...}}, or these after <|python_tag|>."""

from __future__ import annotations

from functools import partial
from typing import Final

from gateway.grammars import Special, repeated
from gateway.json_schemas import Schemas
from gateway.output.formats.base import ToolFormat, read_calls
from gateway.output.formats.json_calls import (
    SEPARATOR,
    UNTAGGED,
    JsonCall,
    json_call_rules,
    read_untagged,
)
from gateway.output.message import ParsedMessage
from gateway.output.reading import Incoming, Steps

_TAG: Final = "<|python_tag|>"


class Llama(ToolFormat):
    markers = (_TAG,)
    trigger = ""
    untagged = UNTAGGED

    def read(self, text: Incoming, out: ParsedMessage, tools: Schemas) -> Steps[None]:
        yield from read_untagged(text, out, tools)
        yield from read_calls(text, out, (_TAG,), partial(_tagged, text, out))

    def calls(self, tools: Schemas, special: Special, *, parallel: bool) -> str:
        calls = repeated("object", '"; "', parallel=parallel)
        return f"calls: {calls}\n{json_call_rules(tools, 'parameters')}"


def _tagged(text: Incoming, out: ParsedMessage) -> Steps[None]:
    """Read one call and the calls that follow it without a tag."""
    yield from text.expect(_TAG)
    yield from text.space()
    while True:
        yield from JsonCall(text, out).read()
        yield from text.match(SEPARATOR)
        text.consume()
        if (yield from text.peek()) != "{":
            return
