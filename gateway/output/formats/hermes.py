"""Calls of Hermes, Qwen 2.5, Qwen 3 and many others: <tool_call>{...}</tool_call>.

Qwen2.5-Coder writes them in a fence, ```json, instead of the tags that its template shows.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Final

from picospec.gateway.grammars.json_schema import Schemas
from picospec.gateway.grammars.lark import Special, marker, repeated
from picospec.gateway.output.formats.base import Format, read_calls
from picospec.gateway.output.formats.json_calls import (
    UNTAGGED,
    JsonCall,
    json_call_rules,
    read_untagged,
)
from picospec.gateway.output.incoming import Incoming, Steps
from picospec.gateway.output.message import Message

_OPEN: Final = "<tool_call>"
_CLOSE: Final = "</tool_call>"
_SURPLUS: Final = re.compile(r"[\s}]*")
"""Small models miscount the closing brackets."""


class Hermes(Format):
    markers = (_OPEN, _CLOSE)
    trigger = _OPEN
    untagged = UNTAGGED
    also = ' | object | "```json\\n" object "\\n```"'

    def read(self, text: Incoming, out: Message, tools: Schemas) -> Steps[None]:
        yield from read_untagged(text, out, tools)
        yield from read_calls(text, out, (_OPEN,), partial(_call, text, out))

    def calls(self, tools: Schemas, special: Special, *, parallel: bool) -> str:
        before = f'"\\n" {marker(_OPEN, special)}'
        call = f'call: "\\n" object "\\n" {marker(_CLOSE, special)}'
        calls = repeated("call", before, parallel=parallel)
        return f"calls: {calls}\n{call}\n{json_call_rules(tools, 'arguments')}"


def _call(text: Incoming, out: Message) -> Steps[None]:
    yield from text.expect(_OPEN)
    yield from text.space()
    yield from JsonCall(text, out).read()
    yield from text.match(_SURPLUS)
    yield from text.take(_CLOSE)
