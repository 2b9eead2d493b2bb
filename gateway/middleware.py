"""Middleware around every route: accounting, then API keys, then the body limit.

The classes are plain ASGI, because Starlette's BaseHTTPMiddleware interferes with streaming.
"""

from __future__ import annotations

import hmac
import re
import traceback
import uuid
from collections.abc import Sequence
from typing import Final

import structlog
from pydantic import SecretStr
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.account import Account, Clock
from gateway.errors import ClientGone, EngineFault, TooLarge, Unauthorized
from gateway.metrics import Metrics
from gateway.responses import error_response
from gateway.statistics import total

_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_OPEN_PATHS: Final = frozenset({"/health", "/metrics"})


class Accounts:
    """Gives each request an id and an Account in `scope["state"]`; logs and counts it.

    An exception that nothing else translated becomes a 500, and its traceback is logged.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, clock: Clock) -> None:
        self._app = app
        self._metrics = metrics
        self._clock = clock
        self._log = structlog.get_logger("gateway")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        account = Account(_request_id(scope), self._metrics, self._clock, self._clock())
        scope.setdefault("state", {})["account"] = account
        self._metrics.running.inc()
        try:
            await self._run(account, scope, receive, send)
        finally:
            self._metrics.running.dec()
            self._close(account, scope)

    async def _run(self, account: Account, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                account.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = account.request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as fault:
            account.fault = fault
            if not account.status:
                error = EngineFault("internal error")
                account.error = error.error_code
                await error_response(error)(scope, receive, send_with_id)

    def _close(self, account: Account, scope: Scope) -> None:
        status = account.status or ClientGone.status  # cancelled before any answer
        self._metrics.requests.labels(str(status)).inc()
        self._metrics.speculated(total(account.statistics.values()))
        if account.first_token_s is not None:
            self._metrics.request_s.observe(account.elapsed_s)
        write = self._log.error if account.fault else self._log.info
        write(
            "request",
            request_id=account.request_id,
            method=scope["method"],
            path=scope["path"],
            status=status,
            error=account.error,
            prompt_tokens=account.prompt_tokens,
            completion_tokens=account.completion_tokens,
            first_token_s=_rounded(account.first_token_s),
            duration_s=_rounded(account.elapsed_s),
            traceback=_traceback(account.fault),
        )


class Keys:
    """Requires `Authorization: Bearer KEY` on every path but those in `_OPEN_PATHS`."""

    def __init__(self, app: ASGIApp, *, keys: Sequence[SecretStr]) -> None:
        self._app = app
        self._keys = tuple(key.get_secret_value().encode() for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _OPEN_PATHS or self._admits(scope):
            return await self._app(scope, receive, send)
        error = Unauthorized("no API key, or a wrong one")
        scope["state"]["account"].error = error.error_code
        await error_response(error)(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        """Compare with every key in constant time, so that the time taken reveals no key."""
        kind, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        offered = given.strip().encode("latin-1")
        matches = [hmac.compare_digest(offered, key) for key in self._keys]
        return not self._keys or (kind.lower() == "bearer" and any(matches))


class BodyLimit:
    """Answers a body over the limit with TooLarge, by Content-Length or once it is read."""

    def __init__(self, app: ASGIApp, *, limit_bytes: int) -> None:
        self._app = app
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        error = TooLarge(f"the body exceeds {self._limit_bytes} bytes")
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdigit() and int(announced) > self._limit_bytes:
            scope["state"]["account"].error = error.error_code
            return await error_response(error)(scope, receive, send)
        await self._app(scope, self._counted(receive, error), send)

    def _counted(self, receive: Receive, error: TooLarge) -> Receive:
        taken_bytes = 0

        async def counted() -> Message:
            nonlocal taken_bytes
            message = await receive()
            taken_bytes += len(message.get("body", b""))
            if taken_bytes > self._limit_bytes:
                raise error
            return message

        return counted


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _SANE_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"


def _traceback(fault: Exception | None) -> str | None:
    """Return text, because log renderers may print a traceback's variables: the prompt."""
    return None if fault is None else "".join(traceback.format_exception(fault))


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
