"""Reads calls of Llama 3: {"name": ..., "parameters": {...}}, or these after <|python_tag|>."""

from __future__ import annotations

from functools import partial
from typing import Final

from picospec.gateway.grammars.json_schema import Schemas
from picospec.gateway.grammars.lark import Special, repeated
from picospec.gateway.output.formats.base import Format, read_calls
from picospec.gateway.output.formats.json_calls import (
    SEPARATOR,
    UNTAGGED,
    JsonCall,
    json_call_rules,
    read_untagged,
)
from picospec.gateway.output.incoming import Incoming, Steps
from picospec.gateway.output.message import Message

_TAG: Final = "<|python_tag|>"


class Llama(Format):
    markers = (_TAG,)
    trigger = ""
    untagged = UNTAGGED

    def read(self, text: Incoming, out: Message, tools: Schemas) -> Steps[None]:
        yield from read_untagged(text, out, tools)
        yield from read_calls(text, out, (_TAG,), partial(_tagged, text, out))

    def calls(self, tools: Schemas, special: Special, *, parallel: bool) -> str:
        calls = repeated("object", '"; "', parallel=parallel)
        return f"calls: {calls}\n{json_call_rules(tools, 'parameters')}"


def _tagged(text: Incoming, out: Message) -> Steps[None]:
    """Read one call and the calls that follow it without a tag."""
    yield from text.expect(_TAG)
    yield from text.space()
    while True:
        yield from JsonCall(text, out).read()
        yield from text.match(SEPARATOR)
        text.consume()
        if (yield from text.peek()) != "{":
            return
