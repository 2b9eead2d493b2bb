"""What applies to every route: an account, API keys, the body limit, and errors as responses.

The class is plain ASGI, because Starlette's BaseHTTPMiddleware interferes with streaming.
"""

from __future__ import annotations

import hmac
import re
import traceback
import uuid
from functools import partial
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.account import Account, Clock
from gateway.errors import ClientGone, Unauthorized
from gateway.metrics import Metrics
from gateway.request_body import RequestBody
from gateway.responses import error_response
from gateway.settings import GatewaySettings

_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_OPEN_PATHS: Final = frozenset({"/health", "/metrics", "/openapi.json", "/docs"})


class Accounts:
    """Gives each request an id and an Account in `scope["state"]`; logs and counts it.

    What is raised before an answer has begun becomes an error response; an exception that is no
    ApiError becomes a 500, and its traceback is logged.
    """

    def __init__(
        self, app: ASGIApp, *, settings: GatewaySettings, metrics: Metrics, clock: Clock
    ) -> None:
        self._app = app
        self._keys = [key.get_secret_value().encode() for key in settings.api_keys]
        self._limit_bytes = settings.body_limit_bytes
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
            await self._run(account, scope, receive, partial(_send_with_id, account, send))
        except Exception as fault:
            account.fault = fault
        finally:
            self._metrics.running.dec()
            self._close(account, scope)

    async def _run(self, account: Account, scope: Scope, receive: Receive, send: Send) -> None:
        body = RequestBody(scope, receive, self._limit_bytes)
        try:
            self._check_key(scope)
            body.check_announced()
            await self._app(scope, body.read, send)
        except Exception as raised:
            if account.status:
                raise
            await body.refuse(error_response(account.failed(raised)), send)

    def _check_key(self, scope: Scope) -> None:
        """Compare with every key in constant time, so that the time taken reveals no key."""
        kind, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        offered = given.strip().encode("latin-1")
        matches = [hmac.compare_digest(offered, key) for key in self._keys]
        admitted = not self._keys or (kind.lower() == "bearer" and any(matches))
        if not admitted and scope["path"] not in _OPEN_PATHS:
            raise Unauthorized("no API key, or a wrong one")

    def _close(self, account: Account, scope: Scope) -> None:
        status = account.status or ClientGone.status  # cancelled before any answer
        self._metrics.requests.labels(str(status)).inc()
        self._metrics.speculated(account.total())
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
            **({"ignored": account.ignored} if account.ignored else {}),
            prompt_tokens=account.prompt_tokens,
            completion_tokens=account.completion_tokens,
            first_token_s=account.first_token_s and round(account.first_token_s, 6),
            duration_s=round(account.elapsed_s, 6),
            traceback=_traceback(account.fault),
        )


async def _send_with_id(account: Account, send: Send, message: Message) -> None:
    if message["type"] == "http.response.start":
        account.status = message["status"]
        message = {**message}  # the stream's is a constant, and MutableHeaders writes to it
        headers = MutableHeaders(scope=message)
        headers["x-request-id"] = account.request_id
        if account.ignored:
            headers["x-picospec-ignored"] = ", ".join(account.ignored)
    await send(message)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _SANE_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"


def _traceback(fault: Exception | None) -> str | None:
    """Return text, because log renderers may print a traceback's variables: the prompt."""
    return None if fault is None else "".join(traceback.format_exception(fault))
