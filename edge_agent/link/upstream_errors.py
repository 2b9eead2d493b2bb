"""Translates errors of the verifier and the network into those that the client gets.

An error is the client's (400, 404, 413, 429) only when the verifier says so of this very
request. A wrong key, or a draft model with another vocabulary, is a fault of this edge.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from picospec.gateway.errors import (
    ApiError,
    Draining,
    EngineFault,
    Forbidden,
    InvalidRequest,
    NotFound,
    Overloaded,
    TooLarge,
    Unavailable,
)
from picospec.speculation.protocol.messages import Fault

_SESSION: Final = re.compile(r"(/v1/speculate/)[^/?)\s]+")
_OF_THE_CLIENT: Final = {400: InvalidRequest, 404: NotFound, 413: TooLarge}


_MOST_CHARACTERS: Final = 1000
"""So much of an error's text is passed on to clients and to the log."""

_CODE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""An error's code, which is a field of the log and of spans."""

MAX_RETRY_AFTER_S: Final = 3600
"""The longest wait that a client is asked for in a verifier's name."""


class _Error(msgspec.Struct):
    """The fields that are passed on of an error in OpenAI's shape."""

    message: str
    param: str | None = None
    code: str | None = None

    def __post_init__(self) -> None:
        self.message = self.message[:_MOST_CHARACTERS]
        self.param = self.param and self.param[:_MOST_CHARACTERS]
        self.code = self.code and _CODE.fullmatch(self.code) and self.code


class _Body(msgspec.Struct):
    error: _Error


class LinkDown(Unavailable):
    """Nothing came from a verifier. how: `refused` where no process listens at its address,
    `broken` where the connection was, `silent` where it is there and carries nothing."""

    def __init__(
        self, message: str, how: Literal["refused", "broken", "silent"] = "broken"
    ) -> None:
        super().__init__(message)
        self.how = how


@dataclass(frozen=True, slots=True)
class Answer:
    """What a verifier has answered, with all of its body."""

    status: int
    content: bytes
    retry_after: str = ""


def from_answer(answer: Answer) -> ApiError:
    """Translate an answer that is an error."""
    error, status = _read(answer), answer.status
    match status:
        case 400 | 404 | 413:
            return _OF_THE_CLIENT[status](error.message, param=error.param, code=error.code)
        case 403 if error.code == Forbidden.code:
            return EngineFault(f"the verifier answered: {error.message}", code=error.code)
        case 401 | 403:
            return EngineFault(
                "the verifier refuses this edge's key (PICOSPEC_VERIFIER_KEY)",
                code="verifier_unauthorized",
            )
        case 409 if error.code == "identity_mismatch":
            return Unavailable(
                f"the verifier is another one now: {error.message}", code=error.code
            )
        case 429:
            return Overloaded(error.message, retry_after_s=_retry_after_s(answer.retry_after))
        case 503 if error.code == Draining.code:
            return Draining(f"the verifier is draining: {error.message}")
        case 502 | 503 | 504:
            return Unavailable(f"the verifier is not ready: {error.message}")
    return EngineFault(f"the verifier answered {status}: {error.message}", code=error.code)


def from_fault(message: Fault) -> ApiError:
    """Translate the end of a session that did not finish."""
    kind = Unavailable if message.retryable else EngineFault
    error = _Error(message.text, code=message.code)
    return kind(f"the verifier ended the session: {error.message}", code=error.code)


def unreachable(url: str, error: Exception) -> LinkDown:
    """Return the error for a verifier that cannot be reached."""
    if isinstance(error, TimeoutError):
        return LinkDown(f"the verifier at {url} does not answer", "silent")
    if isinstance(error, ConnectionError) and "refused" in str(error).lower():
        return LinkDown(f"no verifier answers at {url} (connection refused)", "refused")
    return LinkDown(f"no verifier answers at {url} ({reason(error)})")


def reason(error: Exception) -> str:
    """Return an error of the transport as a log and a client may see it: the transport quotes
    the address, and a session's name is a secret."""
    return _SESSION.sub(r"\1*", f"{type(error).__name__}: {error}")


def _read(answer: Answer) -> _Error:
    try:
        return msgspec.json.decode(answer.content, type=_Body).error
    except msgspec.MsgspecError:
        return _Error(f"it answered {answer.status}")


def _retry_after_s(value: str) -> int:
    return min(int(value), MAX_RETRY_AFTER_S) if re.fullmatch("[0-9]{1,9}", value) else 1
