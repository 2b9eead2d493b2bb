"""Admits, finds and ends the running sessions."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Final

import structlog

from gateway.errors import RateLimited
from gateway.tenant_limits import Tenant
from gateway.tracing import NO_SPAN, Span
from speculation.messages import (
    Fault,
    Open,
    Opened,
)
from speculation.model_facts import PROTOCOL_VERSION
from verifier.host import Host
from verifier.metrics import VerifierMetrics
from verifier.sessions.session import Session
from verifier.sessions.timeouts import Timeouts
from verifier.sessions.usage import SessionUsage
from verifier.settings import SessionSettings
from verifier.target import TargetFull, UnknownSession

LEARNED_STATISTICS_S: Final = 1.0
"""A status waits so long for what the target has learned, which may take a pass."""


MIN_UPLOADS: Final = 4
"""A tenant whose sessions are limited has as many upload streams as sessions, or these: an edge
has one for each process of a verifier, and may not know yet that an older one is dead."""


class Sessions:
    def __init__(self, host: Host, settings: SessionSettings, metrics: VerifierMetrics) -> None:
        self._host = host
        self._settings = settings
        self._metrics = metrics
        self.running: dict[str, Session] = {}
        self._uploads: Counter[Tenant] = Counter()
        self.run = secrets.token_urlsafe(6)
        """All session names begin with this. An edge recognises by it that this process was
        only out of reach, and has not restarted."""

    async def end_all(self) -> None:
        """End every session with a Fault that gives the reason, and wait for their tasks."""
        running = list(self.running.values())
        fault = Fault("shutting_down", "the verifier is shutting down", True)
        if self._host.state == "failed":  # a session may have caused it
            fault = Fault("target_failed", "the target is lost", True)
        for session in running:
            session.cancel(fault)
        if running:
            await asyncio.wait([session.task for session in running])

    async def open(self, request: Open, tenant: Tenant, span: Span = NO_SPAN) -> Session:
        """Start a session that `find` returns to this tenant only. The session that it replaces
        ends first, and frees its slot and its KV cache.

        span: the span of the request that opens it. Raises TargetFull, Unservable, Overloaded,
        or Unavailable while loading."""
        target = self._host.ready()
        await self._end_replaced(request.replaces, tenant)
        with ExitStack() as undo:
            tenant.begin(time.monotonic())  # first, because few checks can run at once
            undo.callback(tenant.end)
            await target.check(request, tenant.identity)
            if len(self.running) >= (most := self._settings.max_sessions):
                self._metrics.refused.inc()
                raise TargetFull(f"all {most} sessions are taken")
            self._host.drain.enter()  # after all that may raise, or the drain would never end
            undo.pop_all()
        now = time.monotonic()
        opened = Opened(self.run + secrets.token_urlsafe(12), target.facts.limits)
        timeouts = Timeouts(self._settings, now, now)
        part = span.begin(
            "session",
            model=request.model,
            judge=request.judge,
            prompt_tokens=len(request.prompt),
            committed_tokens=len(request.committed),
        )
        context = SessionUsage(self._metrics.gateway.of(request.model), part, now)
        session = Session(opened, request, target, timeouts, context, tenant)
        self.running[session.name] = session
        self._metrics.open.inc()
        session.task.add_done_callback(partial(self._over, session))
        try:
            await asyncio.sleep(0)  # a target rejects sessions before it first waits
        except asyncio.CancelledError:
            session.cancel(Fault("cancelled", "its edge has left"))  # nobody would read it
            raise
        if session.turned_away:
            self._metrics.refused.inc(isinstance(session.turned_away, TargetFull))
            raise session.turned_away
        return session

    @contextmanager
    def uploading(self, tenant: Tenant) -> Iterator[None]:
        """Count an upload stream of a tenant while it lasts. Raises RateLimited."""
        most = tenant.limits.sessions
        if most is not None and self._uploads[tenant] >= (most := max(most, MIN_UPLOADS)):
            raise RateLimited(f"no more than {most} upload streams at once")
        self._uploads[tenant] += 1
        try:
            yield
        finally:
            self._uploads[tenant] -= 1
            self._uploads += Counter()  # keeps the positive counts

    async def _end_replaced(self, name: str, tenant: Tenant) -> None:
        """End the session that a new one replaces, if it still runs: the connection of its
        stream may be dead without anybody having noticed."""
        with suppress(UnknownSession):
            replaced = self.find(name, tenant)
            replaced.cancel(Fault("cancelled", "another session takes its place"))
            await asyncio.wait([replaced.task])

    @property
    def load(self) -> float:
        """Return the share of the allowed sessions that are running, from 0 to 1."""
        return len(self.running) / self._settings.max_sessions

    async def about(self) -> dict[str, object]:
        """Return the part of /status that only a verifier has."""
        sessions = {"running": len(self.running), "limit": self._settings.max_sessions}
        about: dict[str, object] = {
            "service": "verifier",
            "protocol": PROTOCOL_VERSION,
            "sessions": sessions,
        }
        with suppress(Exception):  # a status is answered whatever state the target is in
            async with asyncio.timeout(LEARNED_STATISTICS_S):
                about["learned_statistics"] = await self._host.ready().learned_statistics()
        return about

    def find(self, name: str, tenant: Tenant) -> Session:
        """Return a running session of this tenant. Raises UnknownSession, also for the session
        of another tenant, as if it did not exist."""
        session = self.running.get(name)
        if session is None or session.tenant is not tenant:
            raise UnknownSession(f"there is no session {name!r}")
        return session

    def _over(self, session: Session, task: asyncio.Task[None]) -> None:
        del self.running[session.name]
        self._host.drain.leave()
        self._metrics.open.dec()
        session.tenant.end()
        session.end(Fault("cancelled", "cancelled before it began"))
        session.context.close(session.ending)
        if session.turned_away:
            return
        if isinstance(session.ending, Fault):
            self._metrics.faults.labels(session.ending.code).inc()
        if not task.cancelled() and (bug := task.exception()):
            structlog.get_logger("verifier").error("session failed", exc_info=bug)
