"""Reads and writes JSON, and finds the arguments of a tool and their types in a JSON schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pydantic_core import from_json

Schema = Mapping[str, object]
Schemas = Mapping[str, Schema]
LARK: Final = "x-lark"
"""A tool that takes a text has a schema with this key, whose value is the text's grammar."""

_KINDS: Final = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
}

MAX_BYTES: Final = 128 * 1024
"""A schema, regex or grammar of a client has at most this size as JSON; clients send a tenth of
that. With the schemas of tools it becomes one constraint, whose limit is twice as high."""

COMBINING: Final = frozenset(
    {"$ref", "allOf", "anyOf", "oneOf", "not", "if", "patternProperties"}
)
"""With these keywords, a schema of an object demands more than a list of properties."""


def schemas_of(tools: Sequence[Mapping[str, object]]) -> Schemas:
    """Return the schema of each tool's arguments, by tool name. tools: OpenAI's objects."""
    functions = [_mapping(tool.get("function")) for tool in tools]
    return {str(f.get("name")): _mapping(f.get("parameters")) for f in functions}


def check_json(schema: Schema) -> None:
    """Raise ValueError for a tool whose text fits neither into JSON nor into arguments."""
    if LARK in schema:
        raise ValueError(
            "this model's format of calls has no place for a text in Lark: let tool_choice name"
            " its tool"
        )


def properties(schema: Schema) -> Schemas:
    """Return the schema of each named argument, with the definitions it may refer to."""
    shared = _definitions(schema)
    named = _mapping(schema.get("properties"))
    return {name: {**_mapping(value), **shared} for name, value in named.items()}


def _definitions(schema: Schema) -> Schema:
    """Return the definitions that each argument of a schema may refer to."""
    return {name: schema[name] for name in ("$defs", "definitions") if name in schema}


def parameters(schema: Schema) -> Iterator[tuple[str, Schema, bool]]:
    """Yield the name and the schema of each argument, and True if it is required.

    Raises ValueError for a schema with further demands on the object.
    """
    check_json(schema)
    named = properties(schema)
    listed = schema.get("required", ())
    required = set(map(str, listed)) if isinstance(listed, Sequence) else set()
    if not required <= named.keys():
        raise ValueError("a required argument is not among the properties")
    for keyword in COMBINING & schema.keys():
        raise ValueError(f"{keyword} is not supported in this model's format of calls")
    if len(encode(_definitions(schema))) * len(named) > MAX_BYTES:  # each rule has all
        raise ValueError(f"definitions times arguments exceed {MAX_BYTES} bytes")
    for name, value in named.items():
        yield name, value, name in required


def kinds(schema: Schema) -> frozenset[str]:
    """Return the JSON types that a schema names; an empty set if it names none."""
    if "const" in schema:
        return frozenset({kind_of(schema["const"])})
    if isinstance(values := schema.get("enum"), Sequence):
        return frozenset(map(kind_of, values))
    named = schema.get("type")
    if isinstance(named, str):
        return frozenset({named})
    if isinstance(named, Sequence):
        return frozenset(map(str, named))
    choices = schema.get("anyOf", schema.get("oneOf"))
    parts = [kinds(_mapping(c)) for c in choices] if isinstance(choices, Sequence) else []
    return frozenset().union(*parts) if all(parts) else frozenset()


def kind_of(value: object) -> str:
    """Return the JSON type of a decoded value."""
    return _KINDS.get(type(value), "object" if isinstance(value, Mapping) else "array")


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def decode(text: str) -> object:
    """Return the value of a JSON text. Raises ValueError, also for NaN, for deep nesting and
    for half of a surrogate pair."""
    return from_json(text, allow_inf_nan=False)


def encode(value: object) -> str:
    """Return a value as JSON. Raises ValueError or TypeError for what JSON cannot express."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
