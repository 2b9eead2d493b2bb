"""Pydantic's errors in OpenAI's words: a 400 that names the field and quotes no input."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from gateway.errors import InvalidRequest

_CODES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "json_invalid": "invalid_json",
        "missing": "missing_required_parameter",
        "extra_forbidden": "unknown_parameter",
    }
)

Body = TypeVar("Body", bound=BaseModel)


def parse(schema: type[Body], body: bytes) -> Body:
    """Return the request in a JSON body, or raise InvalidRequest."""
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from None


def invalid(error: ValidationError, *, under: str | None = None) -> InvalidRequest:
    """Translate the first of a validation's errors. `under`: the field it was validated for."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = [*([under] if under else []), *(str(step) for step in first["loc"])]
    param = ".".join(path) or None
    kind = first["type"]
    reason = first["msg"].removeprefix("Value error, ")
    if kind == "json_invalid":
        reason = "the body is not valid JSON"
    message = f"{param}: {reason}" if param else reason
    return InvalidRequest(message, param=param, code=_CODES.get(kind))
