"""Errors as Anthropic's API has them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from picospec.gateway.doors.answer import Json
from picospec.gateway.errors import ApiError, Draining, Overloaded, PromptTooLong, RateLimited

OVERLOADED: Final = 529
_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    OVERLOADED: "overloaded_error",
}
"""The types of errors by their status; others below 500 are the client's, and above ours."""


def status_of(error: ApiError) -> int:
    """Return the status of an error: one of its own says that the service is full."""
    full = isinstance(error, Overloaded) and not isinstance(error, RateLimited)
    return OVERLOADED if full else error.status


def error_body(error: ApiError) -> Json:
    """Return the body of an error, which is its event in a stream, too."""
    status, message = status_of(error), error.message
    is_ours = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    kind = _TYPES.get(status, "api_error" if is_ours else "invalid_request_error")
    if isinstance(error, Draining):  # another service takes the request
        kind = _TYPES[OVERLOADED]
    if isinstance(error, PromptTooLong):  # clients find both numbers, and shorten what they send
        message = f"prompt is too long: {error.tokens} tokens > {error.context_tokens} maximum"
    return {"type": "error", "error": {"type": kind, "message": message}}
