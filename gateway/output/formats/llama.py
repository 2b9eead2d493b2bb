"""Calls of Llama 3: {"name": ..., "parameters": {...}}, perhaps after <|python_tag|>.

Without the tag, calls are the first thing in an answer, and they must name one of the tools,
because JSON that a user asked for looks alike.
"""

from __future__ import annotations

import re
from collections.abc import Container
from functools import partial
from typing import Final

from gateway.output.formats.base import Format, read_calls
from gateway.output.formats.json_calls import JsonCall, json_call_rules
from gateway.output.incoming import Incoming, Malformed, Steps
from gateway.output.lark import Special, repeated
from gateway.output.message import Message
from gateway.output.schemas import Schemas

_TAG: Final = "<|python_tag|>"
_SEPARATOR: Final = re.compile(r"[\s;]*")


class Llama(Format):
    markers = (_TAG,)
    trigger = ""
    no_call = r"\s*[^\s{](?s:.*)"

    def read(self, text: Incoming, out: Message, tools: Schemas) -> Steps[None]:
        yield from text.space()
        if (yield from text.peek()) == "{":
            yield from _untagged(text, out, tools)
        else:
            text.at = 0
        yield from read_calls(text, out, (_TAG,), partial(_tagged, text, out))

    def calls(self, tools: Schemas, special: Special, *, parallel: bool) -> str:
        calls = repeated("object", '"; "', parallel=parallel)
        return f"calls: {calls}\n{json_call_rules(tools, 'parameters')}"


def _untagged(text: Incoming, out: Message, tools: Schemas) -> Steps[None]:
    try:
        yield from _objects(text, out, tools)
    except Malformed:
        out.content(text.use(), text.used)


def _tagged(text: Incoming, out: Message) -> Steps[None]:
    yield from text.expect(_TAG)
    yield from text.space()
    yield from _objects(text, out, None)


def _objects(text: Incoming, out: Message, names: Container[str] | None) -> Steps[None]:
    """Read one call and those that follow it without a tag of their own."""
    yield from JsonCall(text, out, names).read()
    yield from text.match(_SEPARATOR)
    text.use()
    while (yield from text.peek()) == "{" and not out.complete:
        yield from JsonCall(text, out, names).read()
        yield from text.match(_SEPARATOR)
        text.use()
