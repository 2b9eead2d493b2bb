"""A session has a task, unsent replies and timeouts between the routes and the target.

A session lives as long as the stream that opened it. However it ends, the last message that
`read` returns is a Finish or a Fault.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing
from typing import Final

from picospec.gateway.tenants.tenant import Tenant
from picospec.speculation import wire
from picospec.speculation.messages import (
    Beat,
    Commit,
    Draft,
    Fault,
    Finish,
    Open,
    Opened,
    Pushed,
    Reject,
    RemoteProtocolError,
    Reused,
)
from picospec.speculation.wire import Framed
from picospec.verifier.sessions.account import SessionAccount
from picospec.verifier.sessions.outbox import Outbox
from picospec.verifier.sessions.timeouts import Timeouts
from picospec.verifier.target import (
    Reply,
    Target,
    TargetError,
    TargetFull,
    UnknownSession,
    Unservable,
)

Entry = Framed[Reply | Fault | Beat]

_BEAT: Final = Framed(Beat(), wire.encode(Beat()))

PUSH_S: Final = 0.001
"""A session that pushes many messages yields to the event loop after this many seconds."""

CHAINS_PER_REPLY: Final = 2
"""Each reply lets an edge send this many times max_ahead draft tokens more. A correct edge
needs one: a Commit breaks the chain once, or makes room for as many as it confirms."""

INITIAL_CHAINS: Final = 16
"""A session begins with this many times max_ahead. The first chain needs one; an edge sends a
request up to four times."""


class Session:
    """Runs in a task of its own from the start. It keeps the replies that its stream has not
    sent yet; the length of the answer bounds them."""

    def __init__(
        self,
        opened: Opened,
        request: Open,
        target: Target,
        timeouts: Timeouts,
        account: SessionAccount,
        tenant: Tenant,
    ) -> None:
        self.opened = opened
        self.tenant = tenant
        self.name = opened.session
        self.ending: Finish | Fault | None = None
        self.turned_away: TargetFull | Unservable | None = None
        """The target rejected the session for this reason; None if it did not."""

        self.outbox: Outbox | None = None
        """The session's edge has asked that the entries go there; None if it has not."""

        self._request = request
        self._target = target
        self._timeouts = timeouts
        self.account = account
        self._timer: asyncio.TimerHandle | None = None
        """It looks at the timeouts when the first of them may be over. It is not set again for
        what makes them later, as each message does."""

        self._write: Callable[[bytes], object] | None = None
        self._news: list[Entry] = []
        self._changed = asyncio.Event()
        self._cause: Fault | None = None
        self._may_send = INITIAL_CHAINS * opened.limits.max_ahead
        """The edge may still send this many draft tokens; a Redraw counts as one."""

        self._pushing = asyncio.Lock()
        self.task = asyncio.create_task(self._run())

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
        while not (self._news or self.ending):
            self._changed.clear()
            await self._changed.wait()
        news, self._news = self._news, []
        return news

    def divert(self, write: Callable[[bytes], object]) -> None:
        """Have this function called with the frame of each unread and further entry. `read`
        then waits for the last one, and returns []."""
        self._write = write
        news, self._news = self._news, []
        for entry in news:
            write(entry.frame)

    def beat(self) -> None:
        """Have `read` return a Beat, unless it has other entries to return."""
        if not (self._news or self.ending):
            self._send(_BEAT)

    async def _run(self) -> None:
        try:
            replies = self._target.serve(self.name, self._request, self.tenant.name)
            self._arm()
            async with aclosing(replies):
                async for reply in replies:
                    self._record(reply)
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
        if isinstance(reply.message, Reused):
            if self._request.version > 5:
                self._send(reply)
            return
        now, timeouts = time.monotonic(), self._timeouts
        is_sooner, timeouts.active_at, timeouts.started = not timeouts.started, now, True
        self._may_send += CHAINS_PER_REPLY * self.opened.limits.max_ahead
        match reply.message:
            case Commit(tokens=tokens):
                self.account.committed(len(tokens), now)
                self.tenant.spend(len(tokens), now)
                timeouts.rejected_at = None
            case Reject() if timeouts.rejected_at is None:
                timeouts.rejected_at, is_sooner = now, True
            case Finish() as finish:
                self.account.finished(now)
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
        if self._write is None:
            self._news.append(entry)
        else:
            self._write(entry.frame)
        if self._write is None or self.ending:
            self._changed.set()

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
