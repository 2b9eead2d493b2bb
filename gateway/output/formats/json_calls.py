"""Reads calls that are written as JSON objects: {"name": ..., "arguments": {...}}.

The text of the arguments is passed on as the model wrote it. If a client sends it back in the
next turn, the tokens are the same again, and their KV is reused.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Final

from gateway.grammars import arguments, literal
from gateway.json_schemas import Schemas, decode
from gateway.output.bracketed_values import read_value, stream_value
from gateway.output.message import ParsedMessage
from gateway.output.reading import Incoming, Malformed, Steps

_ARGUMENTS: Final = ("arguments", "parameters")
UNTAGGED: Final = r"\s*(```(json)?)?\s*\{"
"""Text that `read_untagged` may recognise as a call begins with this regular expression."""

SEPARATOR: Final = re.compile(r"[\s;]*")
_FIELDS: Final = frozenset({"name", "type", "id", *_ARGUMENTS})


def stream_arguments(text: Incoming, out: ParsedMessage, name: str) -> Steps[None]:
    """Begin a call, and pass on the JSON object that follows. Raises Malformed."""
    out.begin_call(name)
    text.consume()
    try:
        yield from stream_value(text, out.arguments)
    finally:
        out.end_call()


def read_untagged(text: Incoming, out: ParsedMessage, names: Container[str]) -> Steps[None]:
    """Read calls at the beginning of an answer, which may be fenced as code in Markdown.

    They must name a tool and have arguments, because JSON that a user asked for looks similar.
    """
    try:
        yield from text.space()
        while not out.complete:
            fenced = (yield from text.take("```json")) or (yield from text.take("```"))
            yield from text.space()
            yield from JsonCall(text, out, names).read()
            yield from text.space()
            if fenced:
                yield from text.take("```")
            yield from text.match(SEPARATOR)
            text.consume()
            if text.ended:
                text.consume(len(text.held))  # the text is cut within the end of a fence
    except Malformed:
        out.content(text.consume(), text.consumed)


class JsonCall:
    """Reads one call, which begins for the client as soon as its name and `{` have come.

    Before that the call can be found malformed. Later its arguments may still turn out not to
    be JSON, as in OpenAI's API; the client then gets what the model wrote.
    """

    def __init__(
        self, text: Incoming, out: ParsedMessage, names: Container[str] | None = None
    ) -> None:
        """names: names that a call may have, without unusual fields; None: any name."""
        self._text = text
        self._out = out
        self._names = names
        self._name: str | None = None
        self._arguments: str | None = None
        self._begun = False

    def read(self) -> Steps[None]:
        """Read the object. Raises Malformed if it is not a call.

        If an error occurs after the arguments have begun, the call ends with them.
        """
        try:
            yield from self._fields()
        except Malformed:
            if not self._begun:
                raise
            self._text.at = 0
            return
        if not self._begun:
            arguments = self._whole_arguments()
            self._out.begin_call(self._known_name())
            self._out.arguments(arguments)
            self._out.end_call()
        self._text.consume()

    def _fields(self) -> Steps[None]:
        yield from self._text.expect("{")
        yield from self._field()
        while not (yield from self._text.take("}")):
            yield from self._text.expect(",")
            yield from self._field()

    def _field(self) -> Steps[None]:
        """Read `"name": value` and the space around it."""
        text = self._text
        yield from text.space()
        field = _decode((yield from read_value(text)))
        if not isinstance(field, str) or (self._names is not None and field not in _FIELDS):
            raise Malformed("calls have no such field")
        yield from text.space()
        yield from text.expect(":")
        yield from text.space()
        yield from self._value(field)
        yield from text.space()

    def _value(self, field: str) -> Steps[None]:
        if field in _ARGUMENTS and self._streams and (yield from self._text.peek()) == "{":
            self._begun = True
            yield from stream_arguments(self._text, self._out, self._known_name())
            return
        value = yield from read_value(self._text)
        if field == "name":
            self._name = self._checked(_decode(value))
        elif field in _ARGUMENTS:
            self._arguments = value

    def _whole_arguments(self) -> str:
        if self._arguments is None and self._names is not None:
            raise Malformed("this may be any JSON")
        return _as_object(self._arguments or "null")

    @property
    def _streams(self) -> bool:
        return self._name is not None and not self._begun

    def _known_name(self) -> str:
        if self._name is None:
            raise Malformed("a call has a name")
        return self._name

    def _checked(self, name: object) -> str:
        if not isinstance(name, str) or not name:
            raise Malformed("a name is a text")
        if self._names is not None and name not in self._names:
            raise Malformed("there is no such tool")
        return name


def _as_object(arguments: str) -> str:
    """Return the text of an object, which some models write as a string, or null if empty."""
    if arguments == "null":
        return "{}"
    if arguments.startswith('"'):
        decoded = _decode(arguments)
        arguments = decoded if isinstance(decoded, str) else ""
        _decode(arguments)
    if not arguments.startswith("{"):
        raise Malformed("arguments are an object")
    return arguments


def _decode(value: str) -> object:
    try:
        return decode(value)
    except ValueError as error:
        raise Malformed("this is not JSON") from error


def json_call_rules(tools: Schemas, field: str) -> str:
    """Return Lark rules for `object`, which is a call whose arguments are in `field`."""
    begins = [literal(f'{{"name": "{name}", "{field}": ') for name in tools]
    calls = [f'{begin} arguments_{index} "}}"' for index, begin in enumerate(begins)]
    return f"object: {' | '.join(calls)}\n{arguments_rules(tools)}"


def arguments_rules(tools: Schemas) -> str:
    """Return Lark rules for `arguments_0`, `arguments_1` and so on, in the order of `tools`."""
    schemas = enumerate(tools.values())
    return "".join(f"arguments_{index}: {arguments(schema)}\n" for index, schema in schemas)
