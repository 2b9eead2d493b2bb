"""Calls that are written as a Python list: [get_weather(city="Paris", days=3), now()].

The list is the first thing in an answer. Because text may well begin with a bracket, its calls
must name the tools. Each call is passed on as a whole, because its arguments are not JSON.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Final

from gateway.output.extent import PYTHON, read_value
from gateway.output.formats.base import Format, pass_content
from gateway.output.incoming import Incoming, Malformed, Steps
from gateway.output.lark import Special, json_value, literal, repeated
from gateway.output.message import Message
from gateway.output.schemas import Schema, Schemas, parameters

_NAME: Final = re.compile(r"[\w.-]*")


class Pythonic(Format):
    markers = ()
    trigger = ""
    no_call = r"\s*[^\s\[](?s:.*)"

    def read(self, text: Incoming, out: Message, tools: Schemas) -> Steps[None]:
        try:
            yield from _list(text, out, tools)
        except Malformed:
            out.content(text.use(), text.used)
        yield from pass_content(text, out)

    def calls(self, tools: Schemas, special: Special, *, parallel: bool) -> str:
        calls = repeated("call", '", "', parallel=parallel)
        named = [f"{literal(name)} call_{index}" for index, name in enumerate(tools)]
        rules = "".join(_rules(f"call_{i}", tool) for i, tool in enumerate(tools.values()))
        return f'calls: "[" {calls} "]"\ncall: {" | ".join(named)}\n{rules}'


def _list(text: Incoming, out: Message, tools: Schemas) -> Steps[None]:
    yield from text.space()
    yield from text.expect("[")
    yield from _call(text, out, tools)
    while not (yield from text.take("]")):
        yield from text.expect(",")
        yield from _call(text, out, tools)
    yield from text.space()
    text.use()


def _call(text: Incoming, out: Message, tools: Schemas) -> Steps[None]:
    yield from text.space()
    name = yield from text.match(_NAME)
    if name not in tools or (yield from text.peek()) != "(":
        raise Malformed("a call has the name of a tool, and arguments")
    arguments = _as_json((yield from read_value(text, PYTHON)))
    out.begin_call(name)
    out.arguments(arguments)
    out.end_call()
    text.use()
    yield from text.space()


def _as_json(arguments: str) -> str:
    """Return the JSON object of keyword arguments, given in their brackets."""
    source = f"f{arguments}"
    try:
        with warnings.catch_warnings(action="ignore"):  # about unknown escapes in strings
            call = ast.parse(source, mode="eval").body
        text = json.dumps(_values(source, call), ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise Malformed("these are not keyword arguments") from error
    return text


def _values(source: str, call: ast.expr) -> dict[str, object]:
    if not isinstance(call, ast.Call) or call.args:
        raise ValueError("each argument has a name")
    return {_name(keyword): _value(source, keyword.value) for keyword in call.keywords}


def _name(keyword: ast.keyword) -> str:
    if keyword.arg is None:
        raise ValueError("each argument has a name")
    return keyword.arg


def _value(source: str, node: ast.expr) -> object:
    """Return the value of an argument in JSON, which has other words than Python, or Python."""
    try:
        return json.loads(ast.get_source_segment(source, node) or "")
    except ValueError:
        return ast.literal_eval(node)


def _rules(call: str, schema: Schema) -> str:
    """Return Lark rules for `call`: the keyword arguments of a tool, in brackets.

    Rule `call`_n is the n-th argument, and `call`_n_on is what may follow earlier ones.
    """
    rules = []
    first = following = ""
    for index, (name, value, needed) in reversed(list(enumerate(parameters(schema)))):
        argument = f"{call}_{index}"
        rules.append(f"{argument}: {literal(name + '=')} {argument}_value\n")
        rules.append(f"{argument}_value: {json_value(value)}\n")
        rules.append(f'{argument}_on: (", " {argument}){"" if needed else "?"} {following}\n')
        first = f"{argument} {following}" + ("" if needed else f" | {first}")
        following = f"{argument}_on"
    return f'{call}: "(" ({first}) ")"\n{"".join(rules)}'
