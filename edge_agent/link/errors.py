"""Translates errors of the verifier and the network into those that the client gets.

An error is the client's (400, 404, 413, 422, 429) only if the verifier reports it for this
very request. A wrong key is a fault of this edge.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

import msgspec
from pyqwest import Response as Response

from gateway.errors import (
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
from speculation.messages import Fault
from speculation.untrusted import Malformed, decode_json

_SESSION: Final = re.compile(r"(/v1/speculate/)[^/?)\s]+")
_OF_THE_CLIENT: Final = {400: InvalidRequest, 404: NotFound, 413: TooLarge, 422: InvalidRequest}


@dataclass(frozen=True, slots=True)
class Peer:
    """Another service: its name in errors, and the variable that holds the key for it."""

    name: str
    key: str

    @property
    def unavailable(self) -> str:
        """The error code for a peer that cannot be used."""
        return f"{self.name}_unavailable"


VERIFIER: Final = Peer("verifier", "PICOSPEC_VERIFIER_KEY")

_MOST_CHARACTERS: Final = 1000
"""At most this much of an error's text is passed on to clients and to the log."""

_CODE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""Matches an error's code, which is a field of the log and of spans."""

MAX_RETRY_AFTER_S: Final = 3600
"""A client is asked to wait at most this long on behalf of a verifier."""


class _Error(msgspec.Struct):
    """The fields of an error in OpenAI's shape that are passed on."""

    message: str
    param: str | None = None
    said: str | int | None = msgspec.field(default=None, name="code")
    """The code; vLLM and llama-server put the status here."""

    def __post_init__(self) -> None:
        self.message = self.message[:_MOST_CHARACTERS]
        self.param = self.param and self.param[:_MOST_CHARACTERS]

    @property
    def code(self) -> str | None:
        is_code = isinstance(self.said, str) and _CODE.fullmatch(self.said)
        return str(self.said) if is_code else None


class _Body(msgspec.Struct):
    error: _Error


class LinkDown(Unavailable):
    """A peer gave no usable answer. how: `refused` if no process listens at its address,
    `silent` if there is a connection that carries nothing, `broken` in all other cases."""

    def __init__(
        self,
        message: str,
        how: Literal["refused", "broken", "silent"] = "broken",
        peer: Peer = VERIFIER,
    ) -> None:
        super().__init__(message, code=peer.unavailable)
        self.how = how


class AnswerTooLong(LinkDown):
    """A peer's answer had more bytes than it may have."""


@dataclass(frozen=True, slots=True)
class VerifierResponse:
    """The answer of a verifier, with its whole body."""

    status: int
    content: bytes
    retry_after: str = ""


def from_answer(answer: VerifierResponse, peer: Peer = VERIFIER) -> ApiError:
    """Translate the error answer of a peer."""
    error, status = _read(answer), answer.status
    match status:
        case 400 | 404 | 413 | 422:
            return _OF_THE_CLIENT[status](error.message, param=error.param, code=error.code)
        case 403 if error.code == Forbidden.code:
            return EngineFault(f"the {peer.name} answered: {error.message}", code=error.code)
        case 401 | 403:
            return EngineFault(
                f"the {peer.name} refuses this edge's key ({peer.key})",
                code=f"{peer.name}_unauthorized",
            )
        case 409 if error.code == "identity_mismatch":
            return Unavailable(
                f"the verifier is another one now: {error.message}", code=error.code
            )
        case 429:
            return Overloaded(error.message, retry_after_s=_retry_after_s(answer.retry_after))
        case 503 if error.code == Draining.code:
            return Draining(f"the {peer.name} is draining: {error.message}")
        case 502 | 503 | 504:
            message = f"the {peer.name} is not ready: {error.message}"
            return Unavailable(message, code=peer.unavailable)
    return EngineFault(f"the {peer.name} answered {status}: {error.message}", code=error.code)


def from_fault(message: Fault) -> ApiError:
    """Translate the Fault that ended a session."""
    kind = Unavailable if message.retryable else EngineFault
    error = _Error(message.text, said=message.code)
    return kind(f"the verifier ended the session: {error.message}", code=error.code)


def unreachable(url: str, error: Exception, peer: Peer = VERIFIER) -> LinkDown:
    """Return the error for a peer that cannot be reached."""
    if isinstance(error, TimeoutError):
        return LinkDown(f"the {peer.name} at {url} does not answer", "silent", peer)
    if isinstance(error, ConnectionError) and "refused" in str(error).lower():
        message = f"no {peer.name} answers at {url} (connection refused)"
        return LinkDown(message, "refused", peer)
    return LinkDown(f"no {peer.name} answers at {url} ({reason(error)})", peer=peer)


def reason(error: Exception) -> str:
    """Return a transport error as a log and a client may see it: the transport quotes the
    address, and a session's name in it is a secret."""
    return _SESSION.sub(r"\1*", f"{type(error).__name__}: {error}")


def _read(answer: VerifierResponse) -> _Error:
    try:
        return decode_json(answer.content, _Body).error
    except Malformed:
        return _Error(f"it answered {answer.status}")


def _retry_after_s(value: str) -> int:
    return min(int(value), MAX_RETRY_AFTER_S) if re.fullmatch("[0-9]{1,9}", value) else 1
