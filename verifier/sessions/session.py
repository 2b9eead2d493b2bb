"""A session has a task, unsent replies and timeouts between the routes and the target.

A session lives as long as the stream that opened it. However it ends, the last message that
`read` returns is a Finish or a Fault.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

from gateway.background_work import start
from gateway.channel import Channel, ChannelFull
from gateway.tenant_limits import Tenant
from speculation import wire
from speculation.errors import RemoteProtocolError
from speculation.messages import (
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
)
from speculation.wire import Framed
from verifier.sessions.multiplexed_stream import MultiplexedStream
from verifier.sessions.timeouts import Timeouts
from verifier.sessions.usage import SessionUsage
from verifier.target import Reply, Target, TargetError, TargetFull, UnknownSession, Unservable

Entry = Framed[Reply | Fault | Heartbeat]

STREAM_HEARTBEAT: Final = Framed(Heartbeat(), wire.encode(Heartbeat()))

PUSH_S: Final = 0.001
"""A session that pushes many messages yields to the event loop after this many seconds."""

CHAINS_PER_REPLY: Final = 2
"""Each reply lets an edge send this many times max_ahead draft tokens more. A correct edge
needs one: a Commit breaks the chain once, or makes room for as many as it confirms."""

INITIAL_CHAINS: Final = 16
"""A session begins with this many times max_ahead draft tokens. The first chain needs one; an
edge sends a request up to four times."""


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
