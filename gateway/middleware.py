"""Gives every route a request context, checks of `Host`, keys and limits, and errors as
responses.

The body of a request that is not admitted is discarded, and not each such request is logged.

The class is plain ASGI, because Starlette's BaseHTTPMiddleware interferes with streaming.
"""

from __future__ import annotations

import re
import traceback
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from random import Random
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.access import HEALTH_PATHS, Access, is_open
from gateway.errors import ClientGone, RateLimited, Shape
from gateway.hosting.limits import allowed_connections
from gateway.hosting.settings import GatewaySettings
from gateway.hosting.strangers import check_head, check_page
from gateway.http import NOSNIFF, error_response
from gateway.log_limits import LogLimit, shown
from gateway.metrics import Metrics
from gateway.request_body import MAX_BODY_BYTES, RequestBody
from gateway.request_context import RequestContext, TokenTimes, Usage
from gateway.tenants import Tenants

_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_PROBES: Final = frozenset({*HEALTH_PATHS, "/ready", "/status", "/metrics"})
"""These paths are requested every few seconds: only a bug in them is logged."""

ANSWERS: Final = frozenset({
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages",
    "/chat/completions", "/completions", "/completion", "/infill", "/api/chat",
    "/api/generate", "/v1/picospec/direct/chat/completions", "/v1/speculate",
})  # fmt: skip
"""A POST to one of these asks for an answer: for a session of an edge, too."""


def route_of(method: str, path: str) -> str:
    """Return the kind of a request's path, which is a label of metrics: most requests may be
    those of pages and probes, and no share of failures should count them."""
    if path in _PROBES:
        return "probe"
    if method == "POST" and path in ANSWERS:
        return "answer"
    return "page" if is_open(path) else "other"


_REFUSALS: Final = frozenset({401, 403, 404, 405, 408, 413, 415})
"""If no key is needed, requests with these statuses share a log line, see LogLimit."""

ShapeOf = Callable[[str, Headers], Shape]
"""Returns the shape of errors for a request, by its path and headers."""


@dataclass(eq=False)
class RequestContexts:
    """Gives each request an id and a RequestContext in `scope["state"]`; logs and counts it.

    An exception before an answer has begun becomes an error response; one that is not an
    ApiError becomes a 500, and its traceback is logged.
    """

    app: ASGIApp
    settings: GatewaySettings
    tenants: Tenants
    metrics: Metrics
    access: Access
    shape_of: ShapeOf

    def __post_init__(self) -> None:
        self._clock = self.access.clock
        self._refused: defaultdict[int, LogLimit] = defaultdict(LogLimit)
        self._log = structlog.get_logger("gateway")
        self._random = Random()  # ids are no secrets, and the system's chance takes 25 us

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        anonymous, headers = self.tenants.anonymous, Headers(scope=scope)
        usage = Usage(self.metrics, TokenTimes(self._clock, self._clock()))
        shape = self.shape_of(scope["path"], headers)
        request_id = self._request_id(headers)
        context = _give(scope, RequestContext(request_id, usage, anonymous, shape))
        if self.access.is_message(scope["path"]):
            await self._serve(context, scope, receive, send)
            return self._close_message(scope)
        try:
            await self._serve(context, scope, receive, send)
        finally:
            if (goes_on := context.claim.goes_on) is None:
                self._close(scope)
            else:
                goes_on.add_done_callback(lambda _: self._close(scope))

    def _request_id(self, headers: Headers) -> str:
        header = headers.get("x-request-id", "")
        return (
            header
            if _SANE_ID.fullmatch(header)
            else f"req-{self._random.getrandbits(128):032x}"
        )

    async def _serve(
        self, context: RequestContext, scope: Scope, receive: Receive, send: Send
    ) -> None:
        try:
            await self._run(context, scope, receive, partial(_send_with_id, context, send))
        except Exception as fault:
            context.outcome.fault = fault

    async def _run(
        self, context: RequestContext, scope: Scope, receive: Receive, send: Send
    ) -> None:
        limit_bytes = self.access.body_limit_bytes(scope) or self.settings.body_limit_bytes
        body = RequestBody(scope, receive, limit_bytes or MAX_BODY_BYTES)
        try:
            self._admit(scope)
            if scope["method"] == "POST" and not self.access.is_message(scope["path"]):
                self._begin_span(scope)  # others take no time worth tracing
            with self._place(scope):
                await self.app(scope, body.admitted(), send)
        except Exception as raised:
            if context.outcome.status:
                raise
            response = error_response(context.failed(raised), context.shape)
            await body.refuse(response, send, briefly=isinstance(raised, RateLimited))

    def _begin_span(self, scope: Scope) -> None:
        path, headers = self.access.shown(scope["path"]), Headers(scope=scope)
        span = self.access.tracing.begin("request", headers, method="POST", path=path)
        _give(scope, replace(_context(scope), span=span))

    def _place(self, scope: Scope) -> AbstractContextManager[None]:
        """Return the context in which a request takes one of its tenant's places. Whatever a
        tenant holds open, others find connections. Raises RateLimited."""
        if is_open(scope["path"]):
            return nullcontext()
        return _context(scope).tenant.running(self.tenants.share(allowed_connections()))

    def _admit(self, scope: Scope) -> None:
        """Find the tenant of a request, and count the request. Raises ApiError."""
        headers = Headers(scope=scope)
        check_head(headers, scope.get("http_version", ""), self.access.hosts)
        path, now = scope["path"], self._clock()
        if is_open(path):
            return
        key = _key_in(headers)
        tenant, check_key = (
            self.tenants.of(key, now),
            lambda: self.tenants.of(key, self._clock()),
        )
        context = _give(scope, replace(_context(scope), tenant=tenant, check_key=check_key))
        paths = self.access.session_paths
        names_session = paths is not None and path.startswith(paths)
        context.outcome.has_unknown_session = names_session
        if not names_session:
            if not self.tenants.need_key:
                check_page(headers, scope["method"], self.settings.cors_origins)
            context.tenant.admit(now)

    def _close_message(self, scope: Scope) -> None:
        context = _context(scope)
        status = context.outcome.status
        if status < HTTPStatus.BAD_REQUEST:
            return
        self.metrics.failed_messages.labels(str(status)).inc()
        if self._exceeds_unknown_sessions(context):
            self._log_rate_limit(context)
        elif status != HTTPStatus.NOT_FOUND:  # otherwise its request has just ended
            self._write(context, scope, status)

    def _close(self, scope: Scope) -> None:
        context = _context(scope)
        outcome = context.outcome
        status = outcome.status or ClientGone.status  # cancelled before any answer
        route = route_of(scope["method"], scope["path"])
        self.metrics.requests.labels(str(status), route).inc()
        context.close()
        if outcome.error == RateLimited.code or self._exceeds_unknown_sessions(context):
            self._log_rate_limit(context)
        elif outcome.fault or self._is_logged(scope, status):
            self._write(context, scope, status)
        context.end_span(status)

    def _is_logged(self, scope: Scope, status: int) -> bool:
        """Return False for probes, and for what succeeds and changes nothing: a page loads some
        thirty files, and then asks for the status every few seconds."""
        if scope["path"] in _PROBES:
            return False
        reads = scope["method"] in ("GET", "HEAD", "OPTIONS")
        return status >= HTTPStatus.BAD_REQUEST or (self.settings.log_requests and not reads)

    def _exceeds_unknown_sessions(self, context: RequestContext) -> bool:
        """Count a request for a session that does not exist; return True if it exceeds a limit.

        The request gets a 404 in any case, which an edge ignores: its draft may come late, and
        the cut stream has shown it a loss. After a 429 it would try again.
        """
        try:
            if context.outcome.has_unknown_session:
                context.tenant.admit(self._clock())
        except RateLimited:
            return True
        return False

    def _write(self, context: RequestContext, scope: Scope, status: int) -> None:
        is_refusal = self._is_refusal(context, status)
        refused = self._refused[status].count(self._clock()) if is_refusal else 0
        if is_refusal and not refused:
            return
        usage, outcome = context.usage, context.outcome
        first_s = usage.times.first_s
        write = self._log.error if outcome.fault else self._log.info
        rare: dict[str, object] = {
            "error": outcome.error,
            "refused": refused,
            "ignored": outcome.ignored,
            "fallback": outcome.fallback,
            "proxied": outcome.proxied,
            "proxied_for": outcome.proxied_for,
            "first_token_s": first_s and round(first_s, 3),
            "traceback": _traceback(outcome.fault),
        }
        write(
            "request",
            status=status,
            method=shown(scope["method"]),
            path=self.access.shown(scope["path"]),
            tenant=context.tenant.name,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            **{name: fact for name, fact in rare.items() if fact},
            duration_s=round(usage.times.elapsed_s, 3),
            request_id=context.request_id,
        )

    def _is_refusal(self, context: RequestContext, status: int) -> bool:
        """Return True if any client could cause such a line, and as often as it likes."""
        if context.outcome.fault or context.tenant is not self.tenants.anonymous:
            return False
        return self.tenants.need_key or status in _REFUSALS

    def _log_rate_limit(self, context: RequestContext) -> None:
        tenant = context.tenant
        if tenant.limited.count(self._clock()):
            self._log.warning(
                "rate_limited", tenant=tenant.name, limits=tenant.limits.model_dump()
            )


def _context(scope: Scope) -> RequestContext:
    context: RequestContext = scope["state"]["context"]
    return context


def _give(scope: Scope, context: RequestContext) -> RequestContext:
    """Give a request's handler this context from now on, and return it."""
    scope.setdefault("state", {})["context"] = context
    return context


async def _send_with_id(context: RequestContext, send: Send, message: Message) -> None:
    if message["type"] == "http.response.start":
        outcome = context.outcome
        outcome.status = message["status"]
        message = {**message}  # a stream's message is a constant; MutableHeaders changes it
        headers = MutableHeaders(scope=message)
        headers["x-request-id"] = context.request_id
        headers.update(NOSNIFF)
        facts = {"ignored": ", ".join(outcome.ignored), "fallback": outcome.fallback}
        facts |= {"relayed": outcome.proxied, "relayed-for": outcome.proxied_for}
        headers.update({f"x-picospec-{name}": text for name, text in facts.items() if text})
    await send(message)


def _key_in(headers: Headers) -> str:
    """Return the key in a request's headers, OpenAI's or else Anthropic's; "" for none."""
    if (authorization := headers.get("authorization")) is None:
        return headers.get("x-api-key", "").strip()
    kind, _, key = authorization.partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""


def _traceback(fault: Exception | None) -> str | None:
    """Return the traceback as text: log renderers may print its variables, even the prompt."""
    return None if fault is None else "".join(traceback.format_exception(fault))
