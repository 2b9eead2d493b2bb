"""Defines every error that a client can get, with its HTTP status and its meaning.

* ApiError
  - InvalidRequest      400  the request names something wrong or unsupported (`param`)
    - PromptTooLong     400  the prompt leaves no room in the context
    - Unsupported       400  this service cannot do it; another server of the same API may
  - Unauthorized        401  no key, or a wrong one
  - Forbidden           403  the request's Host is not one of this service's names, or without
                             keys a page of another origin may have sent it
  - NotFound            404  no such model or path
  - RequestTimeout      408  the request's body did not come in time
  - TooLarge            413  the body exceeds the limit
  - UnsupportedMediaType 415 without keys, a content type that any page can send
  - Overloaded          429  the service is full; the client may retry after `retry_after_s`
    - RateLimited       429  the client's key is at one of its limits
  - ClientGone          499  the client closed the connection; for logs and metrics only
  - EngineFault         500  a bug of this service
  - NotServed           501  only other servers of the same API do what the request asks for
  - Unavailable         503  the verifier cannot be reached, or the connection was lost
    - Draining          503  the service is about to stop; another one takes the request
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Self


def renamed(field: str, names: Mapping[str, str]) -> str:
    """Return `field` with its own name, or that of the object that contains it, replaced by
    `names`."""
    for own, theirs in names.items():
        if field == own or field.startswith(f"{own}."):
            return theirs + field.removeprefix(own)
    return field


class ApiError(Exception):
    """This error is sent as OpenAI's {"error": {"message", "type", "param", "code"}}."""

    status: ClassVar[int]
    type: ClassVar[str]
    code: ClassVar[str]
    retry_after_s: int | None = None
    """The client may retry after this many seconds; None if the time is unknown."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.error_code = code or self.code

    def name_field(self, names: Mapping[str, str]) -> None:
        """Rename the field to the client's name. names: maps the engine's names to these."""
        param = self.param or ""
        self.param = renamed(param, names) or None
        if param and self.message.startswith(param):
            self.message = f"{self.param}{self.message.removeprefix(param)}"

    def body(self) -> dict[str, dict[str, str | None]]:
        shown = {"message": self.message, "type": self.type, "param": self.param}
        return {"error": {**shown, "code": self.error_code}}


UNSUPPORTED: Final = "unsupported_parameter"
"""Errors have this code if this service, or its model, does not serve a part of the request."""


class InvalidRequest(ApiError):
    status, type, code = 400, "invalid_request_error", "invalid_value"

    @classmethod
    def of(cls, field: str, reason: object, code: str | None = None) -> Self:
        """Return the error of a request's field; its message begins with the field's name."""
        return cls(f"{field}: {reason}", param=field, code=code)


class Unsupported(InvalidRequest):
    code = UNSUPPORTED


class PromptTooLong(InvalidRequest):
    code = "context_length_exceeded"

    def __init__(self, message: str, *, param: str, tokens: int, context_tokens: int) -> None:
        """tokens: length of the prompt, an estimate if the prompt was not tokenised."""
        super().__init__(message, param=param)
        self.tokens = tokens
        self.context_tokens = context_tokens


class Unauthorized(ApiError):
    status, type, code = 401, "authentication_error", "invalid_api_key"


class Forbidden(ApiError):
    status, type, code = 403, "permission_error", "host_not_allowed"


class NotFound(ApiError):
    status, type, code = 404, "invalid_request_error", "not_found"


class RequestTimeout(ApiError):
    status, type, code = 408, "invalid_request_error", "request_timeout"


class TooLarge(ApiError):
    status, type, code = 413, "invalid_request_error", "request_too_large"


class UnsupportedMediaType(ApiError):
    status, type, code = 415, "invalid_request_error", "unsupported_media_type"


class Overloaded(ApiError):
    status, type, code = 429, "rate_limit_error", "overloaded"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(Overloaded):
    code = "rate_limit_exceeded"


class ClientGone(ApiError):
    status, type, code = 499, "client_closed_request", "client_closed_request"


class EngineFault(ApiError):
    status, type, code = 500, "server_error", "internal_error"


class NotServed(ApiError):
    status, type, code = 501, "invalid_request_error", "not_served"


class Unavailable(ApiError):
    status, type, code = 503, "server_error", "verifier_unavailable"


class Draining(Unavailable):
    code = "draining"
    retry_after_s = 1


@dataclass(frozen=True, slots=True)
class Shape:
    """Shapes errors for a client. Each endpoint has its own Shape; the defaults are
    OpenAI's."""

    body: Callable[[ApiError], object] = ApiError.body
    full: int = Overloaded.status
    """The client gets this status if the service is full."""

    def status(self, error: ApiError) -> int:
        is_full = isinstance(error, Overloaded) and not isinstance(error, RateLimited)
        return self.full if is_full else error.status


OPENAI: Final = Shape()


def first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first exception in nested groups, which a TaskGroup raises."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
