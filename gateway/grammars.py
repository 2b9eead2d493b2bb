"""Constraints of answers: structured output, tool calls in Lark, and their JSON schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple, NoReturn

import msgspec
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import from_json

from gateway.errors import InvalidRequest
from gateway.schema import Flag, RequestModel, Unserved

# Reads and writes JSON, and finds the arguments of a tool and their types in a JSON schema.

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
    """Return the value of a JSON text. Raises ValueError, for NaN and for deep nesting too."""
    try:
        return json.loads(text, parse_constant=_reject)
    except RecursionError as error:
        raise ValueError("the value is nested too deeply") from error


def encode(value: object) -> str:
    """Return a value as JSON. Raises ValueError or TypeError for what JSON cannot express."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _reject(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


# Writes grammars that make a model write tool calls, in the Lark syntax of llguidance.
#
# The parser of a format reads all text that the format's grammar accepts as calls. JSON has the
# spaces of chat templates, because models have learnt these.

Special = Mapping[str, int]
"""Maps the texts that are special tokens in a model to their ids."""


class Tags(NamedTuple):
    """A family of models writes these tags around its reasoning."""

    opening: str
    closing: str


_SPACING: Final = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
_STRING_KEYWORDS: Final = frozenset(
    {"type", "title", "description", "default", "examples", "enum", "const", "$defs"}
    | {"definitions", "minLength", "maxLength", "pattern"}
)
_ANY: Final = "(?s:.*)"
_LARK: Final = re.compile(r"^[ \t]*(%llguidance\b|start[ \t]*:)", re.MULTILINE)
"""llguidance takes a grammar without a match of this for GBNF."""


def literal(text: str) -> str:
    """Return a text as a quoted Lark string."""
    return encode(text)


def marker(text: str, special: Special) -> str:
    """Return the Lark form of a text: its token's id if it is a special token, else quoted."""
    return f"<[{special[text]}]>" if text in special else literal(text)


def json_value(schema: Schema) -> str:
    """Return the part of a Lark rule that stands for a JSON value of the schema."""
    return "%json " + encode({**schema, "x-guidance": _SPACING})


def arguments(schema: Schema) -> str:
    """Return the part of a rule for the object of a call's arguments: only declared ones. A
    schema of an object that declares no arguments allows any."""
    check_json(schema)
    undeclared = schema.get("type") == "object" and "properties" not in schema
    closed = {} if undeclared or COMBINING & schema.keys() else {"additionalProperties": False}
    return json_value({**closed, **schema, "type": "object"})


def string_until(rule: str, schema: Schema, end: str) -> str:
    """Return Lark rules for `rule`: a string of the schema as plain text, followed by `end`.

    The string does not contain the last line of `end`. Raises ValueError for a schema that
    demands more than a length and a pattern.
    """
    if unknown := schema.keys() - _STRING_KEYWORDS:
        raise ValueError(f"{unknown.pop()} is not supported in this model's format of calls")
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, list):
        return f"{rule}: {' | '.join(literal(f'{value}{end}') for value in values)}\n"
    length = f"{_limit(schema, 'minLength') or 0},{_limit(schema, 'maxLength')}"
    tag, close = escaped(end.split("\n")[-1]), escaped(end)
    parts = [f"/(?s:.{{{length}}}){close}/", f"~/{_ANY}{tag}(?s:.+)/"]
    if isinstance(pattern := schema.get("pattern"), str):
        parts.append(f"/{_unanchored(pattern)}{close}/")
    return f"{rule}[lazy]: {rule.upper()}\n{rule.upper()}: {' & '.join(parts)}\n"


def _limit(schema: Schema, name: str) -> str:
    limit = schema.get(name)
    if limit is not None and type(limit) is not int:
        raise ValueError(f"{name} must be an integer")
    return "" if limit is None else str(limit)


def _unanchored(pattern: str) -> str:
    """Return a regular expression that matches a whole text if `pattern` is found in it."""
    before = "" if pattern.startswith("^") else _ANY
    after = "" if pattern.endswith("$") else _ANY
    inner = pattern.removeprefix("^").removesuffix("$")
    return f"{before}(?:{_quoted(inner)}){after}"


def _quoted(pattern: str) -> str:
    """Return a regular expression in its form between slashes."""
    return re.sub(r"(\\.)|/", lambda at: at[1] or r"\/", pattern).replace("\n", r"\n")


def repeated(call: str, before: str, *, parallel: bool) -> str:
    """Return a rule for one call or, in parallel, several, separated by `before`."""
    return f"{call} ({before} {call})*" if parallel else call


def escaped(text: str) -> str:
    """Return a regular expression for a text, in its form between slashes."""
    return re.escape(text).replace("\n", "n").replace("/", r"\/")


def content(constraint: Mapping[str, object]) -> str:
    """Return the rule for `content` that conforms to a constraint. Raises ValueError."""
    match constraint:
        case {"json": Mapping() as schema}:
            return f"content: {json_value(schema)}\n"
        case {"json_object": True}:
            return f"content: {json_value({'type': 'object'})}\n"
        case {"regex": str(pattern)}:
            return f"content: /{_quoted(pattern)}/\n"
        case {"choice": list(texts)}:
            return f"content: {' | '.join(literal(str(text)) for text in texts)}\n"
        case {"grammar": str(rules)} if _LARK.search(rules):
            return f"content: {nested(rules)}\n"
    raise ValueError("a grammar in GBNF does not go with tools or reasoning; one in Lark does")


def nested(rules: str) -> str:
    """Return a grammar in Lark as a part of a larger one."""
    return f"%lark {{\n{rules}\n}}"


def in_lark(rules: str) -> dict[str, object]:
    """Return the constraint of a text by these rules, marked so that they are not GBNF."""
    return {"grammar": rules if _LARK.search(rules) else f"%llguidance {{}}\n{rules}"}


def free_text(trigger: str, special: Special, untagged: str) -> str:
    """Return rules for `free`, text without calls, and `before`, text up to the first trigger.

    untagged: regular expression with which neither begins.
    """
    unlike = f" & ~/{untagged}{_ANY}/" if untagged else ""
    text = f"free: TEXT\nTEXT: /{_ANY}/{unlike}"
    if not trigger:
        return f"{text}\n"
    if trigger in special:
        return f"{text}\nbefore: TEXT {marker(trigger, special)}\n"
    ends = f"{_ANY}{escaped(trigger)}"
    return f"{text} & ~/{ends}{_ANY}/\nbefore[lazy]: BEFORE\nBEFORE: /{ends}/{unlike}\n"


def reasoning(tags: Tags, special: Special) -> str:
    """Return rules for `closing`, which is the rest of the reasoning, and `reasoning`."""
    opening = marker(tags.opening, special)
    rules = f"reasoning: {opening} closing\nGAP: /\\n{{0,2}}/\n"
    if tags.closing in special:
        closing = marker(tags.closing, special)
        return f"{rules}closing: THOUGHT {closing} GAP\nTHOUGHT: /{_ANY}/\n"
    return f"{rules}closing: thought GAP\nthought[lazy]: /{_ANY}{escaped(tags.closing)}/\n"


# Converts every request for structured output to one constraint, `structured_outputs`:
#
#     {"json": schema} | {"json_object": true} | {"regex": text} | {"choice": texts} |
#     {"grammar": text}
#
# OpenAI's field is response_format, vLLM's are structured_outputs, guided_json and the like,
# and llama-server's are grammar and json_schema. This module only checks the shape and the size
# of a constraint; the engine finds out whether it can be compiled.

NAME: Final = "structured_outputs"
"""The constraint has this name in Job.extras and in Facts.features."""

Constraint = dict[str, object]

MAX_BYTES: Final = 128 * 1024
"""A schema, regex or grammar of a client has at most this size as JSON; clients send a tenth of
that. With the schemas of tools it becomes one constraint, whose limit is twice as high."""

MAX_CHOICES: Final = 1024


def _parsed(value: object) -> object:
    """Return a schema as an object, even if it was sent as text, which vLLM allows."""
    if not isinstance(value, str):
        return value
    _check_size(value)
    return from_json(value)


def _sized(value: Any) -> Any:  # noqa: ANN401 - any type that is validated
    _check_size(msgspec.json.encode(value))
    return value


def _check_size(text: str | bytes) -> None:
    if len(text) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES} bytes")


SchemaField = Annotated[
    dict[str, object],
    BeforeValidator(_parsed, json_schema_input_type=dict[str, object] | str),
    AfterValidator(_sized),
]
_Text = Annotated[str, Field(min_length=1), AfterValidator(_sized)]
_Choice = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    Field(min_length=1, max_length=MAX_CHOICES),
    AfterValidator(_sized),
]


class NamedSchema(RequestModel):
    content: Annotated[SchemaField, Field(alias="schema")]
    name: str | None = None
    description: str | None = None
    strict: Flag | None = None
    """This field has no effect: answers always conform to the schema."""


class ResponseFormat(RequestModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    bare: Annotated[SchemaField | None, Field(alias="schema")] = None
    """llama-server takes the schema in this field."""

    def constraint(self) -> Constraint | None:
        match self.type, self.json_schema, self.bare:
            case "text", None, _:
                return None
            case "json_object", None, None:
                return {"json_object": True}
            case (("json_object" | "json_schema"), None, dict(schema)):
                return {"json": schema}
            case "json_schema", NamedSchema(content=schema), _:
                return {"json": schema}
        message = "json_schema goes with the type json_schema, and only with it"
        raise InvalidRequest(message, param="response_format.json_schema")


class StructuredOutputs(RequestModel):
    """These are the fields of vLLM's StructuredOutputsParams."""

    content: Annotated[SchemaField | None, Field(alias="json")] = None
    json_object: Flag | None = None
    regex: _Text | None = None
    choice: _Choice | None = None
    grammar: _Text | None = None
    structural_tag: Unserved = False
    whitespace_pattern: Unserved = False
    disable_any_whitespace: Unserved = False
    disable_additional_properties: Unserved = False

    def constraint(self) -> Constraint:
        kinds: Constraint = {
            "json": self.content,
            "json_object": self.json_object or None,
            "regex": self.regex,
            "choice": self.choice,
            "grammar": self.grammar,
        }
        values = {kind: value for kind, value in kinds.items() if value is not None}
        if len(values) != 1:
            raise InvalidRequest.of(NAME, f"give exactly one of {', '.join(kinds)}")
        return values


_FORMATS: Final[Mapping[str, str]] = {
    "guided_json": "json",
    "guided_json_object": "json_object",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json",
    "grammar": "grammar",
}
"""Maps each field to the kind of its constraint."""


class Constrained(RequestModel):
    """Parses the fields that ask for structured output."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: SchemaField | None = None
    guided_json_object: Flag | None = None
    guided_regex: _Text | None = None
    guided_choice: _Choice | None = None
    guided_grammar: _Text | None = None
    json_schema: SchemaField | None = None
    grammar: Annotated[
        _Text | None, BeforeValidator(lambda text: None if text == "" else text)
    ] = None

    def constraints(self) -> Iterator[tuple[str, Constraint]]:
        """Yield each constraint's path in the request, and the constraint. Raises
        InvalidRequest."""
        if (form := self.response_format) is not None and (constraint := form.constraint()):
            path = "schema" if form.json_schema is None else "json_schema.schema"
            yield (
                f"response_format.{path}" if "json" in constraint else "response_format",
                constraint,
            )
        if (outputs := self.structured_outputs) is not None:
            constraint = outputs.constraint()
            yield f"structured_outputs.{next(iter(constraint))}", constraint
        for name, kind in _FORMATS.items():
            if (value := getattr(self, name)) not in (None, False):
                yield name, {kind: value}


def names_of(path: str, constraint: Mapping[str, object]) -> Mapping[str, str]:
    """Return a map from the fields in an engine's errors about a constraint to the client's."""
    kind = next(iter(constraint))
    return {f"{NAME}.{kind}": path, NAME: path}
