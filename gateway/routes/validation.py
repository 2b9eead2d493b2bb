"""Reads request bodies. A Pydantic error becomes a 400 that names the field, not its value."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from gateway.errors import ClientGone, InvalidRequest

_CODES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "json_invalid": "invalid_json",
        "missing": "missing_required_parameter",
        "extra_forbidden": "unknown_parameter",
    }
)

Body = TypeVar("Body", bound=BaseModel)


async def parse(schema: type[Body], request: Request) -> Body:
    """Return the JSON body of a request. Raises InvalidRequest or ClientGone."""
    try:
        return schema.model_validate_json(await request.body())
    except ValidationError as error:
        raise invalid(error) from None
    except ClientDisconnect as error:
        raise ClientGone("the client went away before its request was complete") from error


def invalid(error: ValidationError, *, under: str | None = None) -> InvalidRequest:
    """Translate the first error of a validation; `under` is the field that was validated."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = [*([under] if under else []), *(str(step) for step in first["loc"])]
    param = ".".join(path) or None
    kind = first["type"]
    reason = first["msg"].removeprefix("Value error, ")
    if kind == "json_invalid":
        reason = "the body is not valid JSON"
    message = f"{param}: {reason}" if param else reason
    return InvalidRequest(message, param=param, code=_CODES.get(kind))
