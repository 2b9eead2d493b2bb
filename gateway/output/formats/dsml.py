"""Reads the calls of DeepSeek V4, each with its parameters as texts or JSON.

    <~tool_calls>
    <~invoke name="weather">
    <~parameter name="city" string="true">Oslo</~parameter>
    </~invoke>
    </~tool_calls>

Here ~ stands for the token `_MARK`. As in vLLM, text after the first call begins is a part of
calls, or left out.
"""

from __future__ import annotations

import re
from typing import Final

from gateway.json_schemas import Schemas, encode, kinds, properties
from gateway.output.formats.base import ToolFormat
from gateway.output.formats.qwen_coder import as_json
from gateway.output.message import ParsedMessage
from gateway.output.reading import Incoming, Malformed, Steps

_MARK: Final = "\uff5cDSML\uff5c"
_INVOKE: Final = f'<{_MARK}invoke name="'
_NAME_END: Final = '">'
_PARAMETER: Final = f"<{_MARK}parameter"
_PARAMETER_END: Final = f"</{_MARK}parameter>"
_OPENINGS: Final = tuple(f"<{_MARK}{name}>" for name in ("tool_calls", "toolcalls", "tool"))
_ENDS: Final = (f"</{_MARK}invoke>", f"</{_MARK}tool_calls>")
_HEAD: Final = re.compile(r'\s+name="([^"]+)"(?:\s+string="([^"]*)")?\s*')


class Dsml(ToolFormat):
    markers = (_MARK,)
    trigger = _OPENINGS[0]

    def read(self, text: Incoming, out: ParsedMessage, tools: Schemas) -> Steps[None]:
        begins = (*_OPENINGS, _INVOKE)
        yield from text.space()
        before = text.at
        for opening in begins:
            if (yield from text.take(opening)):
                text.consume(before)  # content would be more than space
                break
        text.at = 0
        yield from text.pass_on(begins, out.content)
        while not out.complete and (yield from text.pass_on((_INVOKE,), _drop)):
            try:
                yield from _call(text, out, tools)
            except Malformed:  # the text is cut
                return


def _call(text: Incoming, out: ParsedMessage, tools: Schemas) -> Steps[None]:
    yield from text.expect(_INVOKE)
    name = yield from text.until(_NAME_END)
    yield from text.expect(_NAME_END)
    out.begin_call(name)
    text.consume()
    try:
        yield from _arguments(text, out, properties(tools.get(name, {})))
    finally:
        out.end_call()


def _arguments(text: Incoming, out: ParsedMessage, schemas: Schemas) -> Steps[None]:
    """Pass the parameters on as a JSON object, which stays open if the text is cut."""
    before = "{"
    while (yield from text.pass_on((_PARAMETER, *_ENDS), _drop)):
        if not (yield from text.take(_PARAMETER)):
            out.arguments("{}" if before == "{" else "}")
            return
        head = _HEAD.fullmatch((yield from text.until(">")))
        yield from text.expect(">")
        text.consume()
        if head is not None:
            out.arguments(f"{before}{encode(head[1])}: ")
            before = ", "
            is_text = head[2] == "true"
            yield from _value(text, out, kinds(schemas.get(head[1], {})), is_text=is_text)


def _value(
    text: Incoming, out: ParsedMessage, allowed: frozenset[str], *, is_text: bool
) -> Steps[None]:
    """Pass a value on as JSON. It is a text, or else what the schema allows."""
    if not is_text or not allowed <= {"string"}:
        value = yield from text.until(_PARAMETER_END)
        text.consume()
        out.arguments(as_json(value, allowed))
        return
    out.arguments('"')
    ends = (_PARAMETER_END, _PARAMETER)
    if (yield from text.pass_on(ends, lambda piece, _: out.arguments(encode(piece)[1:-1]))):
        out.arguments('"')


def _drop(piece: str, end: int) -> None:
    """Leave a piece of text out."""
