"""Reads Qwen3-Coder's calls: <tool_call><function=x><parameter=y>value</parameter></function>.

Values are plain text. If the schema asks for a string, the text is that string; otherwise it
is JSON, or a string if it is not valid JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

from gateway.grammars import Special, json_value, literal, marker, repeated, string_until
from gateway.json_schemas import (
    Schema,
    Schemas,
    decode,
    encode,
    kind_of,
    kinds,
    parameters,
    properties,
)
from gateway.output.bracketed_values import read_value
from gateway.output.formats.base import ToolFormat, read_calls
from gateway.output.message import ParsedMessage
from gateway.output.reading import Incoming, Malformed, Steps

_OPEN: Final = "<tool_call>"
_CLOSE: Final = "</tool_call>"
_FUNCTION: Final = "<function="
_FUNCTION_END: Final = "</function>"
_PARAMETER: Final = "<parameter="
_PARAMETER_END: Final = "</parameter>"
_KEY: Final = re.compile(r"[^>\n]*")
_WORDS: Final = {"True": "true", "False": "false", "None": "null"}
"""The template shows the model these values of its earlier calls as Python writes them."""


class QwenCoder(ToolFormat):
    markers = (_OPEN, _CLOSE)
    trigger = _OPEN

    def read(self, text: Incoming, out: ParsedMessage, tools: Schemas) -> Steps[None]:
        opening = (_OPEN, _FUNCTION)  # the model sometimes omits the first
        yield from read_calls(text, out, opening, partial(_call, text, out, tools))

    def calls(self, tools: Schemas, special: Special, *, parallel: bool) -> str:
        begins = [literal(f"\n{_FUNCTION}{name}>\n") for name in tools]
        named = " | ".join(f"{begin} function_{i}" for i, begin in enumerate(begins))
        call = f'({named}) "{_FUNCTION_END}" "\\n" {marker(_CLOSE, special)}'
        calls = repeated("call", rf'"\n" {marker(_OPEN, special)}', parallel=parallel)
        rules = "".join(_rules(f"function_{i}", tool) for i, tool in enumerate(tools.values()))
        return f"calls: {calls}\ncall: {call}\n{rules}"


def _call(text: Incoming, out: ParsedMessage, tools: Schemas) -> Steps[None]:
    yield from text.take(_OPEN)
    yield from text.space()
    yield from text.expect(_FUNCTION)
    name = yield from text.match(_KEY)
    yield from text.expect(">")
    out.begin_call(name)
    text.consume()
    try:
        yield from _arguments(text, out, properties(tools.get(name, {})))
    finally:
        out.end_call()
    yield from text.space()
    yield from text.take(_CLOSE)


def _arguments(text: Incoming, out: ParsedMessage, schemas: Schemas) -> Steps[None]:
    """Pass the parameters on as a JSON object, which stays open if the text is cut."""
    before = "{"
    yield from text.space()
    while (yield from text.take(_PARAMETER)):
        key = yield from text.match(_KEY)
        yield from text.expect(">")
        text.consume()
        out.arguments(f"{before}{encode(key)}: ")
        before = ", "
        yield from _value(text, out, schemas.get(key, {}))
        yield from text.space()
    closed = yield from text.take(_FUNCTION_END)
    if closed or not text.ended:
        out.arguments("{}" if before == "{" else "}")
    if not closed:
        raise Malformed("the function does not end")


def _value(text: Incoming, out: ParsedMessage, schema: Schema) -> Steps[None]:
    """Read a value up to the end of its parameter, and pass it on as JSON."""
    yield from text.take("\n")
    if kinds(schema) == {"string"}:
        yield from _stream_string(text, out)
    else:
        value = yield from _whole_value(text)
        out.arguments(as_json(value.removesuffix("\n"), kinds(schema), _WORDS))
    yield from text.take("\n")
    yield from text.expect(_PARAMETER_END)
    text.consume()


def _stream_string(text: Incoming, out: ParsedMessage) -> Steps[None]:
    text.consume()
    out.arguments('"')
    while True:
        end, literal = text.find_literal((_PARAMETER_END, "\n" + _PARAMETER_END))
        if text.ended and not literal:
            raise Malformed("the value does not end")
        out.arguments(encode(text.consume(end))[1:-1])
        if literal:
            break
        yield
    out.arguments('"')


def _whole_value(text: Incoming) -> Steps[str]:
    """Return the text of a value. A string in an object may contain a parameter's end tag."""
    start = text.at
    if (yield from text.peek()) in ("{", "["):
        try:
            yield from read_value(text)
        except Malformed:
            text.at = start
    yield from text.until(_PARAMETER_END)
    return text.held[start : text.at]


def as_json(
    value: str, allowed: frozenset[str], words: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Return a value as JSON: unchanged if it is JSON of an allowed type, or as a string.
    words: JSON for other spellings."""
    word = words.get(value, value)
    try:
        kind = kind_of(decode(word))
    except ValueError:
        return encode(value)
    if allowed and kind not in allowed and not (kind == "integer" and "number" in allowed):
        return encode(value)
    return word


def _rules(function: str, schema: Schema) -> str:
    """Return Lark rules for `function`, which has the parameters of a tool in their order."""
    rules = []
    sequence = ['""']
    for index, (name, value, needed) in enumerate(parameters(schema)):
        if not _KEY.fullmatch(name):
            raise ValueError(f"this model cannot write an argument of the name {name!r}")
        parameter = f"{function}_{index}"
        begin = literal(f"{_PARAMETER}{name}>\n")
        rules.append(f'{parameter}: {begin} {parameter}_value "\\n"\n')
        rules.append(_value_rules(f"{parameter}_value", value))
        sequence.append(parameter if needed else f"{parameter}?")
    return f"{function}: {' '.join(sequence)}\n{''.join(rules)}"


def _value_rules(rule: str, schema: Schema) -> str:
    """Return Lark rules for a value and the end tag of its parameter."""
    end = f"\n{_PARAMETER_END}"
    if kinds(schema) == {"string"}:
        return string_until(rule, schema, end)
    return f"{rule}: {rule}_json {literal(end)}\n{rule}_json: {json_value(schema)}\n"
