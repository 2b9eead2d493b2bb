"""From what the verifier or the network says to what the client sees.

Only the verifier's refusals of this very request are the client's (400, 404, 413, 429). That
the edge has a wrong key, or a draft model of another vocabulary, is not: those are faults here.
"""

from __future__ import annotations

from dataclasses import dataclass

import httpx
import msgspec

from gateway.errors import (
    ApiError,
    EngineFault,
    InvalidRequest,
    NotFound,
    Overloaded,
    TooLarge,
    Unavailable,
)
from speculation.protocol.messages import Fault


@dataclass(frozen=True, slots=True)
class _Said:
    """The part of an error in OpenAI's shape that is passed on."""

    message: str
    param: str | None = None
    code: str | None = None


class _Body(msgspec.Struct):
    error: _Said


def refusal(response: httpx.Response) -> ApiError:
    """Translate an answer that is no success. Its body must have been read."""
    said = _read(response)
    match response.status_code:
        case 400:
            return InvalidRequest(said.message, param=said.param, code=said.code)
        case 401 | 403:
            return EngineFault(
                "the verifier refuses this edge's key (PICOSPEC_VERIFIER_KEY)",
                code="verifier_unauthorized",
            )
        case 404:
            return NotFound(said.message, param=said.param, code=said.code)
        case 413:
            return TooLarge(said.message, code=said.code)
        case 429:
            return Overloaded(said.message, retry_after_s=_retry_after_s(response))
        case 502 | 503 | 504:
            return Unavailable(f"the verifier is not ready: {said.message}")
    return EngineFault(
        f"the verifier said {response.status_code}: {said.message}", code=said.code
    )


def fault(message: Fault) -> ApiError:
    """Translate the end of a session that did not finish."""
    text = f"the verifier ended the session: {message.text}"
    kind = Unavailable if message.retryable else EngineFault
    return kind(text, code=message.code)


def unreachable(url: httpx.URL | str, error: Exception) -> Unavailable:
    """Say that nobody answers."""
    reason = "connection refused" if refused(error) else f"{type(error).__name__}: {error}"
    return Unavailable(f"no verifier answers at {url} ({reason})")


def refused(error: Exception) -> bool:
    """Tell whether the host said that nothing listens there: waiting is of little use."""
    return isinstance(error, httpx.ConnectError) and "refused" in str(error).lower()


def _read(response: httpx.Response) -> _Said:
    try:
        return msgspec.json.decode(response.content, type=_Body).error
    except msgspec.MsgspecError:
        return _Said(f"{response.status_code} {response.reason_phrase}")


def _retry_after_s(response: httpx.Response) -> int:
    value = response.headers.get("retry-after", "")
    return int(value) if value.isdigit() else 1
