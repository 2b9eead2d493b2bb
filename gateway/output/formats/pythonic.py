"""Reads calls that are written as a Python list: [get_weather(city="Paris", days=3), now()].

The list begins an answer. Because a text may well begin with a bracket, the calls must name
known tools. Each call is passed on as a whole, because its arguments are not JSON.
"""

from __future__ import annotations

import ast
import re
import warnings
from typing import Final

from gateway.grammars import Special, json_value, literal, repeated
from gateway.json_schemas import Schema, Schemas, decode, encode, parameters
from gateway.output.bracketed_values import PYTHON, read_value
from gateway.output.formats.base import ToolFormat, pass_content
from gateway.output.message import ParsedMessage
from gateway.output.reading import Incoming, Malformed, Steps

_NAME: Final = re.compile(r"[\w.-]*")
_WORD: Final = re.compile(r"\w*")


class Pythonic(ToolFormat):
    markers = ()
    trigger = ""
    untagged = r"\s*\["

    def read(self, text: Incoming, out: ParsedMessage, tools: Schemas) -> Steps[None]:
        try:
            yield from _list(text, out, tools)
        except Malformed:
            out.content(text.consume(), text.consumed)
        yield from pass_content(text, out)

    def calls(self, tools: Schemas, special: Special, *, parallel: bool) -> str:
        calls = repeated("call", '", "', parallel=parallel)
        named = [f"{literal(name)} call_{index}" for index, name in enumerate(tools)]
        rules = "".join(_rules(f"call_{i}", tool) for i, tool in enumerate(tools.values()))
        return f'calls: "[" {calls} "]"\ncall: {" | ".join(named)}\n{rules}'


def _list(text: Incoming, out: ParsedMessage, tools: Schemas) -> Steps[None]:
    yield from text.space()
    yield from text.expect("[")
    yield from _call(text, out, tools)
    while not (yield from text.take("]")):
        yield from text.expect(",")
        yield from _call(text, out, tools)
    yield from text.space()
    text.consume()


def _call(text: Incoming, out: ParsedMessage, tools: Schemas) -> Steps[None]:
    yield from text.space()
    name = yield from text.match(_NAME)
    if name not in tools:
        raise Malformed("there is no such tool")
    arguments = yield from _arguments(text)
    out.begin_call(name)
    out.arguments(arguments)
    out.end_call()
    text.consume()
    yield from text.space()


def _arguments(text: Incoming) -> Steps[str]:
    """Read keyword arguments in brackets, and return them as a JSON object."""
    arguments: list[str] = []
    yield from text.expect("(")
    yield from text.space()
    while not (yield from text.take(")")):
        if arguments:
            yield from text.expect(",")
            yield from text.space()
        arguments.append((yield from _argument(text)))
        yield from text.space()
    return f"{{{', '.join(arguments)}}}"


def _argument(text: Incoming) -> Steps[str]:
    name = yield from text.match(_WORD)
    yield from text.space()
    yield from text.expect("=")
    yield from text.space()
    value = yield from read_value(text, PYTHON)
    return f"{encode(name)}: {_value_as_json(value)}"


def _value_as_json(value: str) -> str:
    """Return a literal as JSON: a JSON literal unchanged, a Python literal converted."""
    try:
        decode(value)
    except ValueError:
        return _as_json(value)
    return value


def _as_json(value: str) -> str:
    try:
        with warnings.catch_warnings(action="ignore"):  # about unknown escapes in strings
            text = encode(ast.literal_eval(value))
        text.encode()
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise Malformed("this is no literal") from error
    return text


def _rules(call: str, schema: Schema) -> str:
    """Return Lark rules for `call`: the keyword arguments of a tool, in brackets.

    Rule `call`_n is the n-th argument; `call`_n_on is it and all later ones, after another.
    """
    rules = []
    first = following = ""
    for index, (name, value, needed) in reversed(list(enumerate(parameters(schema)))):
        if not _WORD.fullmatch(name):
            raise ValueError(f"this model cannot write an argument of the name {name!r}")
        argument = f"{call}_{index}"
        rules.append(f"{argument}: {literal(name + '=')} {argument}_value\n")
        rules.append(f"{argument}_value: {json_value(value)}\n")
        rules.append(f'{argument}_on: (", " {argument}){"" if needed else "?"} {following}\n')
        first = f"{argument} {following}" + ("" if needed else f" | {first}")
        following = f"{argument}_on"
    return f'{call}: "(" ({first}) ")"\n{"".join(rules)}'
