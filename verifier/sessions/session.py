"""A session has a task, unsent replies and timeouts between the routes and the target; all that
run are admitted, found and ended here.

A session lives as long as the stream that opened it. However it ends, the last message that
`read` returns is a Finish or a Fault.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from gateway.background_work import start
from gateway.channel import Channel, ChannelFull
from gateway.errors import RateLimited
from gateway.metrics import ModelMetrics
from gateway.tenant_limits import Tenant
from gateway.tracing import NO_SPAN, Fact, Span
from speculation import wire
from speculation.messages import (
    PROTOCOL_VERSION,
    CachedPromptTokens,
    Commit,
    Draft,
    Fault,
    Finish,
    Heartbeat,
    Open,
    Opened,
    Pushed,
    Reject,
    RemoteProtocolError,
    Totals,
)
from speculation.wire import Framed
from verifier.metrics import VerifierMetrics
from verifier.sessions.multiplexed_stream import MultiplexedStream
from verifier.settings import SessionSettings
from verifier.target import (
    Host,
    Reply,
    Target,
    TargetError,
    TargetFull,
    UnknownSession,
    Unservable,
)

# These rules say how long a session may wait, and for what. They have no clock.
#
# All times are in seconds, on one monotonic clock.


@dataclass(slots=True)
class Timeouts:
    settings: SessionSettings
    opened_at: float
    active_at: float
    """The edge's last draft arrived then, or the target's last reply was generated."""

    started: bool = False
    """True once the target has sent a reply."""

    rejected_at: float | None = None
    """A replacement has been awaited since this time; None while none is awaited."""

    def expiry(self) -> tuple[float, Fault]:
        """Return when the session expires if nothing happens, and the Fault that ends it."""
        at, wait_s, code, text = min(self._rules(), key=lambda rule: rule[0] + rule[1])
        return at + wait_s, Fault(code, f"{text} {wait_s:g} s", retryable=code != "max_age")

    def _rules(self) -> Iterator[tuple[float, float, str, str]]:
        """Yield for each wait its beginning, its limit, and the code and text of its Fault."""
        allowed, reason = self.settings, "no draft came and nothing was said for"
        idle_s = allowed.idle_timeout_s if self.started else allowed.first_token_timeout_s
        yield self.active_at, idle_s, "idle_timeout", reason
        yield self.opened_at, allowed.max_age_s, "max_age", "an answer may take at most"
        if self.rejected_at is not None:
            reason = "no replacement for the rejected token within"
            yield self.rejected_at, allowed.replacement_timeout_s, "replacement_timeout", reason


# Counts and times the tokens of one session, as gateway.request_context does for requests.


@dataclass(slots=True)
class SessionUsage:
    """Counts for one session. span: the session's. opened: time of its admission, by the clock
    of `now`."""

    metrics: ModelMetrics
    span: Span
    opened: float
    _tokens: int = 0
    _first_token_s: float = 0.0
    _last: float | None = None  # time of the latest Commit

    def committed(self, tokens: int, now: float) -> None:
        """Count a Commit. The gap before it is observed once, as the mean over its tokens."""
        self._tokens += tokens
        self.metrics.generation_tokens.inc(tokens)
        if self._last is None:
            self._first_token_s = now - self.opened
            self.metrics.first_token_s.observe(self._first_token_s)
        else:
            self.metrics.token_gap_s.observe((now - self._last) / tokens)
        self._last = now

    def finished(self, now: float) -> None:
        """Record that the answer is complete."""
        self.metrics.request_s.observe(now - self.opened)

    def close(self, ending: Finish | Fault | None) -> None:
        """End the span with the counts, and with the error code of a Fault."""
        totals = ending.totals if isinstance(ending, Finish) else Totals()
        if isinstance(ending, Finish):
            self.metrics.ended(ending.reason)
        elif ending is not None:
            self.metrics.success["abort" if ending.code == "cancelled" else "error"].inc()
        facts: dict[str, Fact] = {
            "completion_tokens": self._tokens,
            "first_token_s": self._first_token_s,
            "passes": totals.passes,
            "draft_tokens": totals.judged,
            "accepted_tokens": totals.accepted,
            "acceptance": totals.accepted / max(1, totals.judged),
        }
        self.span.end(ending.code if isinstance(ending, Fault) else None, **facts)


Entry = Framed[Reply | Fault | Heartbeat]

STREAM_HEARTBEAT: Final = Framed(Heartbeat(), wire.encode(Heartbeat()))

PUSH_S: Final = 0.001
"""A session that pushes many messages yields to the event loop after this many seconds."""

CHAINS_PER_REPLY: Final = 2
"""Each reply lets an edge send this many times max_ahead draft tokens more. A correct edge
needs one: a Commit breaks the chain once, or makes room for as many as it confirms."""

INITIAL_CHAINS: Final = 16
"""A session begins with this many times max_ahead. The first chain needs one; an edge sends a
request up to four times."""


MAX_UNREAD_BYTES: Final = 4 << 20
"""A session ends if its stream has left this many bytes unread: 200 tokens/s with 20
log-probabilities each have 3 MB within http.UNREAD_S."""

_UNREAD: Final = Fault("cancelled", "its stream is not read", retryable=True)


class Session:
    """Runs in a task of its own from the start."""

    def __init__(
        self,
        opened: Opened,
        request: Open,
        target: Target,
        timeouts: Timeouts,
        context: SessionUsage,
        tenant: Tenant,
    ) -> None:
        self.opened = opened
        self.tenant = tenant
        self.name = opened.session
        self.ending: Finish | Fault | None = None
        self.turned_away: TargetFull | Unservable | None = None
        """The target rejected the session for this reason; None if it did not."""

        self.multiplexed: MultiplexedStream | None = None
        """The session's edge has asked that the entries go there; None if it has not."""

        self._request = request
        self._target = target
        self._timeouts = timeouts
        self.context = context
        self._timer: asyncio.TimerHandle | None = None
        """It looks at the timeouts when the first of them may be over. It is not set again for
        what makes them later, as each message does."""

        self._write: Callable[[bytes], object] | None = None
        self._unread = Channel[Entry](MAX_UNREAD_BYTES, lambda entry: len(entry.frame))
        self._cause: Fault | None = None
        self._may_send = INITIAL_CHAINS * opened.limits.max_ahead
        """The edge may still send this many draft tokens; a Redraw counts as one."""

        self._pushing = asyncio.Lock()
        self.task = start(self._run())

    def cancel(self, cause: Fault) -> None:
        """End the session if it has not ended. Its KV is free within a pass."""
        if not self.ending and self._cause is None:
            self._cause = cause
            self.task.cancel()

    async def push(self, messages: Iterable[Framed[Pushed]]) -> None:
        """Pass a request's messages to the target, after those of earlier requests.

        Raises UnknownSession. A RemoteProtocolError, also from iterating `messages`, ends the
        session."""
        async with self._pushing:
            pause_at = time.monotonic() + PUSH_S
            try:
                for message in messages:
                    if self._cause is not None:
                        raise UnknownSession(f"no session {self.name}")
                    self._count(message.message)
                    await self._target.push(self.name, message)
                    if time.monotonic() >= pause_at:
                        await asyncio.sleep(0)
                        pause_at = time.monotonic() + PUSH_S
            except RemoteProtocolError as error:
                self.cancel(Fault("protocol_error", str(error)))
                raise
        self._timeouts.active_at = time.monotonic()

    def _count(self, pushed: Pushed) -> None:
        self._may_send -= len(pushed.tokens) if isinstance(pushed, Draft) else 1
        if self._may_send < 0:
            raise RemoteProtocolError("Draft.tokens: more in all than a correct edge sends")

    async def read(self) -> list[Entry]:
        """Return the unread entries once there are some; [] after the last."""
        return await self._unread.take()

    def multiplex(self, write: Callable[[bytes], object]) -> None:
        """Have this function called with the frame of each unread and further entry. `read`
        then waits for the last one."""
        self._write = write
        for entry in self._unread.drain():
            write(entry.frame)

    def heartbeat(self) -> None:
        """Have `read` return a Heartbeat, unless it has other entries to return."""
        if not (self._unread or self.ending):
            self._send(STREAM_HEARTBEAT)

    async def _run(self) -> None:
        try:
            self._arm()
            tenant = self.tenant.identity
            await self._target.serve(self.name, self._request, self._record, tenant)
        except asyncio.CancelledError:
            self.end(self._cause or Fault("cancelled", "the session was cancelled"))
        except RemoteProtocolError as error:
            self.end(Fault("protocol_error", str(error)))
        except TargetError as error:
            if isinstance(error, TargetFull | Unservable):
                self.turned_away = error
            self.end(Fault("target_failed", str(error), retryable=True))
        except Exception as bug:  # the edge gets a Fault, the awaiter the bug
            self.end(Fault("target_failed", "internal error"))
            raise bug
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _record(self, reply: Framed[Reply]) -> None:
        if self._cause is not None:
            return None
        if isinstance(reply.message, CachedPromptTokens):
            return self._send(reply)
        now, timeouts = time.monotonic(), self._timeouts
        is_sooner, timeouts.active_at, timeouts.started = not timeouts.started, now, True
        self._may_send += CHAINS_PER_REPLY * self.opened.limits.max_ahead
        match reply.message:
            case Commit(tokens=tokens):
                self.context.committed(len(tokens), now)
                self.tenant.spend(len(tokens), now)
                timeouts.rejected_at = None
            case Reject() if timeouts.rejected_at is None:
                timeouts.rejected_at, is_sooner = now, True
            case Finish() as finish:
                self.context.finished(now)
                self.ending = finish
        if is_sooner:
            self._arm()
        self._send(reply)

    def end(self, fault: Fault) -> None:
        """Make this Fault the last entry, unless the session has ended."""
        if self.ending is None:
            self.ending = fault
            self._send(Framed(fault))

    def _send(self, entry: Entry) -> None:
        if self._write is not None:
            self._write(entry.frame)
        elif self.ending is None:
            try:
                self._unread.put(entry)
            except ChannelFull:
                self.cancel(_UNREAD)
        if self.ending is not None:
            self._unread.close(entry)

    def _arm(self) -> None:
        """Look at the timeouts when the first of them may be over, and not before."""
        if self._timer is not None:
            self._timer.cancel()
        left_s = max(0.0, self._timeouts.expiry()[0] - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(left_s, self._expire)

    def _expire(self) -> None:
        """End the session if a timeout is over."""
        expires_at, fault = self._timeouts.expiry()
        if expires_at > time.monotonic():
            self._arm()
        else:
            self.cancel(fault)


# Admits, finds and ends the running sessions.

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
