"""Defines the types by which request bodies are declared, and their errors.

* As in OpenAI's API, a field that is null counts as absent.
* A field that no schema has is kept, and `unknown_inside` names it: nothing is lost silently.
* A Pydantic error becomes a 400 that names the field, but never quotes its value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, ClassVar, Final, NoReturn, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    Strict,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gateway.errors import InvalidRequest, Unsupported
from gateway.json_bounds import Values

Model = TypeVar("Model", bound=BaseModel)
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Integer = Annotated[int, Strict()]
Flag = Annotated[bool, Strict()]
Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
"""Functions have names as Anthropic allows them, and with dots; OpenAI allows 64 letters."""

_CODES: Final[Mapping[str, str]] = {
    "json_invalid": "invalid_json",
    "missing": "missing_required_parameter",
    "unsupported": "unsupported_parameter",
    "unserved": "unsupported_parameter",
}
_WRONG: Final = frozenset({"json_invalid", "missing", "unserved", "value_error"})
"""No server of the same API serves what has an error of these types; of other types, such as
`less_than_equal`, are the bounds of this service."""


def _only_false(value: object) -> object:
    if value is not False:
        raise PydanticCustomError("unserved", "this is not supported")
    return value


_UNION_MEMBER: Final = re.compile(r"str$|(?:tuple|dict|literal)\[")
"""Pydantic names the members of a union so; no client does."""

FIRST_ERROR: Final = Field(fail_fast=True)
"""Ends the validation of a sequence at its first error, the only one that is reported: each
further error takes several times as long as a valid item."""

Unserved = Annotated[bool, BeforeValidator(_only_false)]
"""This service knows the field but does not serve it: the field is false, or absent."""


class RequestModel(BaseModel):
    """Parses a JSON object of a request. Unknown fields are kept in `model_extra`."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {name: item for name, item in value.items() if item is not None}

    def unknown_inside(self) -> list[str]:
        """Return the names of fields inside nested objects that the objects' schemas do not
        have, such as `messages.cache_control`."""
        names = []
        for name, value in self.__dict__.items():
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, RequestModel):
                    inside = (*(item.model_extra or ()), *item.unknown_inside())
                    names += [f"{name}.{each}" for each in inside]
        return names


class Converted(RequestModel):
    """Parses a body that becomes the request of another endpoint, where its count goes on."""

    _values: Values = PrivateAttr(default_factory=Values)

    @property
    def values(self) -> Values:
        return self._values

    def model_post_init(self, context: object, /) -> None:
        if isinstance(context, Values):
            self._values = context


class Typed(RequestModel):
    """Parses an object whose type, its first field, determines which fields are required."""

    model_config = ConfigDict(validate_default=True)
    needed: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Maps each type to its required fields; a type that is missing here requires the field
    with its own name."""

    @field_validator("*")
    @classmethod
    def _goes_with_its_type(cls, value: object, info: ValidationInfo) -> object:
        kind = str(info.data.get(next(iter(cls.model_fields)), ""))
        if value is None and info.field_name in cls.needed.get(kind, (kind,)):
            missing()
        return value


def validated(
    schema: type[Model],
    body: object,
    names: Mapping[str, str] = MappingProxyType({}),
    values: Values | None = None,
) -> Model:
    """Return `body` as parsed by a schema. names: maps the schema's names of fields to the
    client's. values: count those of JSON within texts, too. Raises InvalidRequest."""
    try:
        return schema.model_validate(body, context=values)
    except ValidationError as error:
        raised = invalid(error)
        raised.name_field(names)
        raise raised from None


def missing() -> NoReturn:
    """Raise, inside a validator, the error of a missing field."""
    raise PydanticCustomError("missing", "Field required")


def unsupported(message: str) -> NoReturn:
    """Raise, inside a validator, the error of a value that this service does not serve."""
    raise PydanticCustomError("unsupported", "{message}", {"message": message})


def invalid(error: ValidationError) -> InvalidRequest:
    """Translate the first error of a validation."""
    first = error.errors(include_url=False, include_input=False)[0]
    steps = map(str, first["loc"])
    param = ".".join(step for step in steps if not _UNION_MEMBER.match(step)) or None
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        reason = "the body is not valid JSON"
    message = f"{param}: {reason}" if param else reason
    kind = InvalidRequest if first["type"] in _WRONG else Unsupported
    return kind(message, param=param, code=_CODES.get(first["type"], InvalidRequest.code))
