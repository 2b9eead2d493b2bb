"""JSON responses: any object msgspec can encode, and errors in OpenAI's format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from starlette.responses import Response

from picospec.gateway.errors import OPENAI, ApiError, Shape, Unauthorized

NOSNIFF: Final = {"x-content-type-options": "nosniff"}
"""It has a browser take a response for what its `content-type` says, and not for a page."""


def json_response(
    body: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response whose body msgspec encodes."""
    given = {**(headers or {}), **NOSNIFF}
    return Response(msgspec.json.encode(body), status, given, "application/json")


def error_response(error: ApiError, shape: Shape = OPENAI) -> Response:
    """Return the error with the headers that RFC 9110 and RFC 6585 name for its status."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    return json_response(shape.body(error), shape.status(error), headers)
