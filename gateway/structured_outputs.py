"""This module declares clients' fields for structured output, and converts them to constraints
of one form, `structured_outputs`:

    {"json": schema} | {"json_object": true} | {"regex": text} | {"choice": texts} |
    {"grammar": text}

OpenAI's field is response_format, vLLM's are structured_outputs, guided_json and the like,
and llama-server's are grammar and json_schema. This module only checks the shape and the size
of a constraint; the engine finds out whether it can be compiled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import from_json

from gateway.errors import InvalidRequest
from gateway.json_schemas import MAX_BYTES
from gateway.schema import Flag, RequestModel, Unserved

NAME: Final = "structured_outputs"
"""The constraint has this name in Job.extras and in Facts.features."""

Constraint = dict[str, object]

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
        named = (self.content, self.json_object or None, self.regex, self.choice, self.grammar)
        values: Constraint = {k: v for k, v in zip(_KINDS, named, strict=True) if v is not None}
        if len(values) != 1:
            raise InvalidRequest.of(NAME, f"give exactly one of {', '.join(_KINDS)}")
        return values


_KINDS: Final = ("json", "json_object", "regex", "choice", "grammar")
_FORMATS: Final[Mapping[str, str]] = {
    **{f"guided_{kind}": kind for kind in _KINDS},
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
