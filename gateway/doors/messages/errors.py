"""Errors as Anthropic's API has them."""

from __future__ import annotations

from typing import Final

from picospec.gateway.errors import (
    ApiError,
    Draining,
    Forbidden,
    InvalidRequest,
    NotFound,
    Overloaded,
    PromptTooLong,
    RateLimited,
    Shape,
    TooLarge,
    Unauthorized,
)

_TYPES: Final = {
    Unauthorized: "authentication_error",
    Forbidden: "permission_error",
    NotFound: "not_found_error",
    TooLarge: "request_too_large",
    RateLimited: "rate_limit_error",
    Overloaded: "overloaded_error",
    Draining: "overloaded_error",
}


def error_body(error: ApiError) -> dict[str, object]:
    """Return the body of an error, which is its event in a stream, too."""
    is_theirs = error.status < InvalidRequest.status + 100
    other = "invalid_request_error" if is_theirs else "api_error"
    message = error.message
    if isinstance(error, PromptTooLong):  # clients look for both numbers, and then shorten it
        message = f"prompt is too long: {error.tokens} tokens > {error.context_tokens} maximum"
    kind = next((kind for of, kind in _TYPES.items() if isinstance(error, of)), other)
    details = {"error_code": error.error_code, "param": error.param}
    shown = {"type": kind, "message": message, "details": details}
    return {"type": "error", "error": shown}


SHAPE: Final = Shape(error_body, full=529)
