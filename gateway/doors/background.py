"""Runs answers that outlive their connections, as tasks of the service.

The events of such an answer are recorded, so that clients can stream them again, from any event
on that is still kept.
"""

from __future__ import annotations

import asyncio
import zlib
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.accounts import Account
from gateway.doors.door import (
    Answer,
    EventStream,
    sent_event,
    stream_piece,
    stream_start,
)
from gateway.errors import ClientGone, Unavailable
from gateway.http import connected, send_to_client
from gateway.output.stream import together

# Records the events of one answer, within a bound.
#
# The newest events are kept as they are, the others in compressed blocks: the event of a token
# has 220 bytes, and 10 in a block.

BLOCK_BYTES: Final = 1 << 15
"""Events are compressed once they have this many bytes together, which takes 0.1 ms."""

MAX_EVENTS_BYTES: Final = 1 << 18
"""The blocks of a recording have at most this many bytes, the events of 25,000 tokens; beyond,
the oldest block is dropped. The last block may be larger by itself."""

_END: Final = b"\n\n"
"""An event ends with this, and has it nowhere else."""


class Dropped(LookupError):
    """Raised if an event is no longer kept."""


class Recording:
    """Keeps the last events of one answer. An event's number is how many came before it."""

    def __init__(
        self, block_bytes: int = BLOCK_BYTES, max_bytes: int = MAX_EVENTS_BYTES
    ) -> None:
        self._block_bytes, self._max_bytes = block_bytes, max_bytes
        self.has_ended = False
        self._blocks: deque[tuple[int, bytes]] = deque()  # each with its first event's number
        self._blocks_bytes = 0
        self._newest: list[bytes] = []  # these events are in no block yet
        self._newest_first = self._newest_bytes = 0
        self._grown = asyncio.Event()

    @property
    def size_bytes(self) -> int:
        return self._blocks_bytes + self._newest_bytes

    def add(self, events: bytes) -> None:
        """Add whole events."""
        self._newest += [event + _END for event in events.split(_END)[:-1]]
        self._newest_bytes += len(events)
        if self._newest_bytes > self._block_bytes:
            self._compress()
        self._wake()

    def end(self) -> None:
        """Note that no more events come."""
        self.has_ended = True
        if self._newest:
            self._compress()
        self._wake()

    def since(self, number: int) -> bytes:
        """Return events from `number` on, at most a block of them; b"" if there are none yet.
        Raises Dropped."""
        if number >= self._newest_first:
            return b"".join(self._newest[number - self._newest_first :])
        block = next((each for each in reversed(self._blocks) if each[0] <= number), None)
        if block is None:
            reason = f"the events before {self._blocks[0][0]} are no longer kept"
            raise Dropped(f"{reason}: retrieve the response")
        return _END.join(zlib.decompress(block[1]).split(_END)[number - block[0] :])

    async def until(self, number: int, within_s: float) -> bool:
        """Return True once event `number` has come, or no more events come; False if neither
        happens in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not self.has_ended and number >= self._newest_first + len(self._newest):
                    await self._grown.wait()
                return True
        return False

    def _compress(self) -> None:
        block = zlib.compress(b"".join(self._newest), 1)
        self._blocks.append((self._newest_first, block))
        self._blocks_bytes += len(block)
        self._newest_first += len(self._newest)
        self._newest, self._newest_bytes = [], 0
        while self._blocks_bytes > self._max_bytes and len(self._blocks) > 1:
            self._blocks_bytes -= len(self._blocks.popleft()[1])

    def _wake(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()


@dataclass(eq=False)
class Replay(Response):
    """Streams a recording from an event on, also while it grows."""

    recording: Recording
    number: int
    keep_alive_s: float
    account: Account | None
    """The account of the request; None if it is the recorded answer's, which goes on."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with connected(receive):
                await send_to_client(send, stream_start(Answer.media_type))
                await self._send_events(send)
            await send_to_client(send, stream_piece(b"", more=False))
        except ClientGone as gone:
            if self.account is not None:
                self.account.status, self.account.error = gone.status, gone.code

    async def _send_events(self, send: Send) -> None:
        number, recording = self.number, self.recording
        while True:
            try:
                events = recording.since(number)
            except Dropped as dropped:  # the client has read too slowly
                about = {"code": "events_dropped", "message": str(dropped), "param": None}
                error = {"type": "error", "sequence_number": number, **about}
                return await send_to_client(send, stream_piece(sent_event(error, "error")))
            number += events.count(_END)
            if events:
                await send_to_client(send, stream_piece(events))
            elif recording.has_ended:
                return None
            elif not await recording.until(number, self.keep_alive_s):
                await send_to_client(send, stream_piece(Answer.keep_alive))


# Runs an answer to its end, whoever is connected.

MAX_RUN_S: Final = 7200.0
"""An answer may take this many seconds, as long as a verifier's session by default."""

CANCEL_S: Final = 10.0
"""An answer that is cancelled has ended within this many seconds: its engine frees it."""

ASKED_S: Final = 5.0
"""While the service drains, an answer that has ended counts as work for this many seconds more,
so that a client that asks every two seconds, as in OpenAI's examples, learns of it."""


class LastingAnswer(Answer):
    """Writes an answer that has a state, besides its events."""

    @property
    @abstractmethod
    def id(self) -> str:
        """Return the id under which clients find the answer."""

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
class Running:
    """Runs an answer in a task. Its account ends with it, and not with its request."""

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

    def begin(self, ended: Callable[[Running], None]) -> None:
        """Begin the task. ended: called when it has ended. Raises Draining."""
        self.stream.drain.enter()
        self._record(self.answer.opening())
        task = self._task = asyncio.create_task(self._run())
        task.add_done_callback(partial(self._end, ended))
        self.stream.account.goes_on = task

    async def cancel(self) -> None:
        """End the answer, and wait until it has ended, for CANCEL_S at most."""
        self._task.cancel()
        await asyncio.wait([self._task], timeout=CANCEL_S)

    async def _run(self) -> None:
        account, limit = self.stream.account, asyncio.timeout(MAX_RUN_S)
        try:
            streams = together(self.stream.streams)
            async with self.stream.drain.answer(), limit, streams as deltas:
                async for index, delta in deltas:
                    account.count(index, delta)
                    if events := self.answer.events(index, delta):
                        self._record(self.answer.mark() + events)
            self._record(self.answer.end())
        except Exception as raised:
            late = Unavailable(f"the answer took more than {MAX_RUN_S:g} s", code="too_slow")
            error = account.failed(late if limit.expired() else raised)
            self._record(self.answer.failure(error))

    def _end(self, ended: Callable[[Running], None], task: asyncio.Task[None]) -> None:
        account, drain = self.stream.account, self.stream.drain
        if task.cancelled():
            account.status, account.error = ClientGone.status, ClientGone.code
            self._record(self.answer.cancelled())
        if self.events is not None:
            self.events.end()
        ended(self)
        asyncio.get_running_loop().call_later(ASKED_S if drain.begun else 0, drain.leave)

    def _record(self, events: bytes) -> None:
        if self.events is not None and events:
            self.events.add(events)
