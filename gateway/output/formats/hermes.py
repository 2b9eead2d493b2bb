"""Reads calls of Hermes, Qwen 2.5, Qwen 3 and many others: <tool_call>{...}</tool_call>.

Qwen2.5-Coder writes calls in a fence, ```json, instead of the tags that its template shows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Final

from gateway.grammars import Special, literal, marker, nested, repeated
from gateway.json_schemas import LARK, Schemas
from gateway.output.formats.base import ToolFormat, read_calls
from gateway.output.formats.json_calls import UNTAGGED, JsonCall, json_call_rules, read_untagged
from gateway.output.message import ParsedMessage
from gateway.output.reading import Incoming, Steps

_OPEN: Final = "<tool_call>"
_CLOSE: Final = "</tool_call>"
_SURPLUS: Final = re.compile(r"[\s}]*")
"""Matches surplus closing brackets, because small models miscount them."""


class Hermes(ToolFormat):
    markers = (_OPEN, _CLOSE)
    trigger = _OPEN
    untagged = UNTAGGED
    also = ' | object | "```json\\n" object "\\n```"'

    def read(self, text: Incoming, out: ParsedMessage, tools: Schemas) -> Steps[None]:
        texts = [name for name, schema in tools.items() if LARK in schema]
        yield from read_untagged(text, out, tools.keys() - texts)
        yield from read_calls(text, out, (_OPEN,), partial(_call, text, out, texts))

    def calls(self, tools: Schemas, special: Special, *, parallel: bool) -> str:
        before = f'"\\n" {marker(_OPEN, special)}'
        texts = {name: schema for name, schema in tools.items() if LARK in schema}
        others = {name: schema for name, schema in tools.items() if name not in texts}
        kinds = [*(f"text_{i}" for i in range(len(texts))), *["object"][: len(others)]]
        rules = [f"calls: {repeated('call', before, parallel=parallel)}"]
        rules.append(f'call: "\\n" ({" | ".join(kinds)}) "\\n" {marker(_CLOSE, special)}')
        for i, (name, schema) in enumerate(texts.items()):
            rules.append(f"text_{i}: {literal(_named(name))} rules_{i}")
            rules.append(f"rules_{i}: {nested(str(schema[LARK]))}")
        json_rules = json_call_rules(others, "arguments") if others else ""
        return "\n".join([*rules, json_rules])


def _named(name: str) -> str:
    """Return the text before the input of a custom tool whose input does not fit into JSON."""
    return f'{{"name": "{name}"}}\n'


def _text(text: Incoming, out: ParsedMessage, name: str) -> Steps[None]:
    out.begin_call(name)
    text.consume()
    yield from text.pass_on((f"\n{_CLOSE}",), lambda piece, _: out.input(piece))
    yield from text.take(f"\n{_CLOSE}")
    out.end_call()


def _call(text: Incoming, out: ParsedMessage, texts: Sequence[str]) -> Steps[None]:
    yield from text.expect(_OPEN)
    yield from text.space()
    for name in texts:
        if (yield from text.take(_named(name))):
            yield from _text(text, out, name)
            return
    yield from JsonCall(text, out).read()
    yield from text.match(_SURPLUS)
    yield from text.take(_CLOSE)
