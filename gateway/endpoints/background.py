"""Runs answers that outlive their connections, as tasks of the service.

The events of such an answer are recorded, so that clients can stream them again, from any event
on that is still kept.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from gateway.background_work import start
from gateway.endpoints.answer import Answer
from gateway.endpoints.recording import Recording
from gateway.endpoints.sending import EventStream
from gateway.errors import ClientGone, Unavailable
from gateway.output.stream import together

MAX_RUN_S: Final = 7200.0
"""A background response may take this many seconds, as long as a verifier's session by
default."""

CHECK_S: Final = 5.0
"""An answer ends within this many seconds if its key is removed."""

CANCEL_S: Final = 10.0
"""A background response that is cancelled ends within this many seconds: its engine frees
it."""

ASKED_S: Final = 5.0
"""While the service drains, a background response that has ended counts as work for this many
seconds more, so that a client that asks every two seconds, as in OpenAI's examples, learns of
it."""


class LastingAnswer(Answer):
    """Writes an answer that has a state, besides its events."""

    @property
    @abstractmethod
    def id(self) -> str:
        """Return the id under which clients find the answer."""

    repeated: bytes = b""
    """What MARK stands for in the events."""

    @abstractmethod
    def opening(self) -> bytes:
        """Return the events before the first token."""

    def mark(self) -> bytes:
        """Return what is recorded before the events of a delta: a comment, or nothing."""
        return b""

    @abstractmethod
    def cancelled(self) -> bytes:
        """Return the events that end an answer which a client has cancelled."""

    @property
    @abstractmethod
    def state(self) -> bytes:
        """Return what the answer is now, as JSON."""


@dataclass(eq=False)
class RunningAnswer:
    """Runs an answer in a task. Its context ends with it, and not with its request."""

    answer: LastingAnswer
    stream: EventStream
    """The answer's deltas come from this stream, which nobody else reads."""

    items: bytes
    """These are all items before the answer, as JSON."""

    events: Recording | None
    """The answer's events are recorded here; None if nobody may stream them again."""

    @property
    def response(self) -> bytes:
        return self.answer.state

    def begin(self, ended: Callable[[RunningAnswer], None]) -> None:
        """Begin the task. ended: called when it has ended. Raises Draining."""
        self.stream.drain.enter()
        self._record(self.answer.opening())
        task = self._task = start(self._run())
        task.add_done_callback(partial(self._end, ended))
        self.stream.context.claim.goes_on = task

    async def cancel(self) -> None:
        """End the answer, and wait until it has ended, for CANCEL_S at most."""
        self._task.cancel()
        await asyncio.wait([self._task], timeout=CANCEL_S)

    async def _run(self) -> None:
        context, limit = self.stream.context, asyncio.timeout(MAX_RUN_S)
        check_at = context.clock()
        try:
            streams = together(self.stream.streams)
            async with self.stream.drain.answer(), limit, streams as deltas:
                async for index, delta in deltas:
                    if (now := context.clock()) >= check_at:
                        context.check_key()
                        check_at = now + CHECK_S
                    context.count(index, delta)
                    if events := self.answer.events(index, delta):
                        await self._packed(self.answer.mark() + events)
            await self._packed(self.answer.end())
        except asyncio.CancelledError:
            await self._packed(self.answer.cancelled())
            raise
        except Exception as raised:
            late = Unavailable(f"the answer took more than {MAX_RUN_S:g} s", code="too_slow")
            error = context.failed(late if limit.expired() else raised)
            await self._packed(self.answer.failure(error))

    def _end(self, ended: Callable[[RunningAnswer], None], task: asyncio.Task[None]) -> None:
        context, drain = self.stream.context, self.stream.drain
        if task.cancelled():
            context.outcome.cut(ClientGone("the answer was cancelled"))
        if self.events is not None:
            self.events.end()
        ended(self)
        asyncio.get_running_loop().call_later(ASKED_S if drain.begun else 0, drain.leave)

    async def _packed(self, events: bytes) -> None:
        self._record(events)
        if self.events is not None:
            await self.events.pack()

    def _record(self, events: bytes) -> None:
        if self.events is not None and events:
            self.events.add(events)
