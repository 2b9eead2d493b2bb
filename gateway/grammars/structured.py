"""Structured output: every way to ask for it becomes one constraint, `structured_outputs`.

    {"json": schema} | {"json_object": true} | {"regex": text} | {"choice": texts} |
    {"grammar": text}

OpenAI calls it response_format, vLLM structured_outputs or guided_json and the like, and
llama-server grammar or json_schema. Only the shape and the size of a constraint are checked
here; whether it can be compiled is for the engine to find out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from picospec.gateway.errors import InvalidRequest
from picospec.gateway.schemas.base import Flag, RequestModel, Unserved, invalid, unknown_fields

NAME: Final = "structured_outputs"
"""The name of the constraint in Job.extras and in Facts.features."""

Constraint = dict[str, object]

MAX_BYTES: Final = 128 * 1024
"""The limit of a schema, regex or grammar, as JSON; those that clients send have a tenth."""

MAX_CHOICES: Final = 1024


def _parsed(value: object) -> object:
    """Return the object for a schema that was sent as text, as vLLM allows."""
    if not isinstance(value, str):
        return value
    _check_size(value)
    return from_json(value)


def _sized(value: Any) -> Any:  # noqa: ANN401 - whatever type is validated
    _check_size(msgspec.json.encode(value))
    return value


def _check_size(text: str | bytes) -> None:
    if len(text) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES} bytes")


Schema = Annotated[
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
    content: Annotated[Schema, Field(alias="schema")]
    name: str | None = None
    description: str | None = None
    strict: Flag | None = None
    """It has no effect: a schema is always kept to."""


class ResponseFormat(RequestModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    bare: Annotated[Schema | None, Field(alias="schema")] = None
    """The schema, where llama-server takes it."""

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
        raise InvalidRequest(
            "json_schema goes with the type json_schema, and only with it",
            param="response_format.json_schema",
        )


class StructuredOutputs(RequestModel):
    """vLLM's StructuredOutputsParams."""

    content: Annotated[Schema | None, Field(alias="json")] = None
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
        given = {kind: value for kind, value in kinds.items() if value is not None}
        if len(given) != 1:
            raise InvalidRequest(
                f"structured_outputs: give exactly one of {', '.join(kinds)}",
                param="structured_outputs",
            )
        return given


def names_of(path: str, constraint: Mapping[str, object]) -> Mapping[str, str]:
    """Return the client's names for the fields that an engine's errors about it name."""
    kind = next(iter(constraint))
    return {f"{NAME}.{kind}": path, NAME: path}


def path_of(name: str, value: object, constraint: Constraint) -> str:
    """Return where in the request the constraint is that the field `name` asks for."""
    match name, value:
        case "response_format", {"json_schema": dict()}:
            return f"{name}.json_schema.schema"
        case "response_format", {"schema": dict() | str()}:
            return f"{name}.schema"
        case "structured_outputs", _:
            return f"{name}.{next(iter(constraint))}"
    return name


def _as(kind: str) -> Callable[[object], Constraint | None]:
    return lambda value: {kind: value} if value is not False else None


_FIELDS: Final[Mapping[str, tuple[TypeAdapter[Any], Callable[[Any], Constraint | None]]]] = {
    "response_format": (TypeAdapter(ResponseFormat), ResponseFormat.constraint),
    "structured_outputs": (TypeAdapter(StructuredOutputs), StructuredOutputs.constraint),
    "guided_json": (TypeAdapter(Schema), _as("json")),
    "guided_json_object": (TypeAdapter(Flag), _as("json_object")),
    "guided_regex": (TypeAdapter(_Text), _as("regex")),
    "guided_choice": (TypeAdapter(_Choice), _as("choice")),
    "guided_grammar": (TypeAdapter(_Text), _as("grammar")),
    "json_schema": (TypeAdapter(Schema), _as("json")),
    "grammar": (TypeAdapter(_Text), _as("grammar")),
}
FIELDS: Final = frozenset(_FIELDS)
"""The fields that ask for structured output."""

ADAPTERS: Final = {name: adapter for name, (adapter, _) in _FIELDS.items()}
"""The checks of their values."""


def constraint_of(name: str, value: object) -> tuple[Constraint | None, list[str]]:
    """Return what a field of FIELDS asks for, None if for nothing, and what it ignores.

    Raises InvalidRequest.
    """
    adapter, convert = _FIELDS[name]
    try:
        checked = adapter.validate_python(value)
    except ValidationError as error:
        raise invalid(error, under=name) from None
    inside = unknown_fields(checked, f"{name}.") if isinstance(checked, RequestModel) else []
    return convert(checked), inside
