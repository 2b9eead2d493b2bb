"""JSON responses: any object msgspec can encode, and errors in OpenAI's format."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from gateway.errors import ApiError, Unauthorized


def json_response(
    body: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response whose body msgspec encodes."""
    return Response(msgspec.json.encode(body), status, headers, "application/json")


def error_response(error: ApiError) -> Response:
    """Return the error with the headers that RFC 9110 and RFC 6585 name for its status."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    return json_response(error.body(), error.status, headers)
