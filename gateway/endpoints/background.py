"""Runs answers that outlive their connections, as tasks of the service.

The events of such an answer are recorded, so that clients can stream them again, from any event
on that is still kept.
"""

from __future__ import annotations

import asyncio
import zlib
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.background_work import start
from gateway.endpoints.endpoint import (
    Answer,
    EventStream,
    sent_event,
    stream_piece,
    stream_start,
)
from gateway.errors import ClientGone, Unauthorized, Unavailable
from gateway.http import connected, pieces, send_to_client
from gateway.output.stream import together
from gateway.request_context import RequestContext

# Records the events of one answer, within a bound.
#
# The newest events are kept as they are, the others in compressed blocks: the event of a token
# has 220 bytes, and 10 in a block.

BLOCK_BYTES: Final = 1 << 15
"""Events are compressed once they have this many bytes together, which takes 0.1 ms."""

MAX_EVENTS_BYTES: Final = 1 << 18
"""The blocks of a recording have at most this many bytes, the events of 25,000 tokens; beyond,
the oldest block is dropped. The last block may be larger by itself."""

LARGE_BYTES: Final = 1 << 18
"""More is compressed in a thread: an answer ends with events that repeat all of it, with each
token's log-probabilities."""

MARK: Final = b"\0"
"""Stands in recorded events for what the answer repeats of its request, which is kept once.
JSON has no such byte."""

_END: Final = b"\n\n"
"""An event ends with this, and has it nowhere else."""


class Dropped(LookupError):
    """Raised if an event is no longer kept."""


class Recording:
    """Keeps the last events of one answer. An event's number is how many came before it."""

    def __init__(
        self,
        block_bytes: int = BLOCK_BYTES,
        max_bytes: int = MAX_EVENTS_BYTES,
        *,
        repeated: bytes = b"",
    ) -> None:
        """repeated: what MARK stands for."""
        self._block_bytes, self._max_bytes = block_bytes, max_bytes
        self._repeated = repeated
        self.has_ended = False
        self._blocks: deque[tuple[int, bytes]] = deque()  # each with its first event's number
        self._blocks_bytes = 0
        self._newest: list[bytes] = []  # these events are in no block yet
        self._newest_first = self._newest_bytes = 0
        self._grown = asyncio.Event()

    @property
    def size_bytes(self) -> int:
        return self._blocks_bytes + self._newest_bytes + len(self._repeated)

    def add(self, events: bytes) -> None:
        """Add whole events; `pack` is to follow if they are many."""
        self._newest += [event + _END for event in events.split(_END)[:-1]]
        self._newest_bytes += len(events)
        if self._block_bytes < self._newest_bytes <= LARGE_BYTES:
            self._compress()
        self._wake()

    async def pack(self) -> None:
        """Compress what is too large for `add`, each event by itself."""
        if self._newest_bytes > LARGE_BYTES:
            for event in [*self._newest]:
                self._keep(await asyncio.to_thread(zlib.compress, event, 1), event)

    def end(self) -> None:
        """Note that no more events come."""
        self.has_ended = True
        if self._newest:
            self._compress()
        self._wake()

    def check(self, number: int) -> None:
        """Raise Dropped if event `number` is no longer kept."""
        if number < self._newest_first:
            self._block_of(number)

    def since(self, number: int) -> bytes:
        """Return events from `number` on, at most a block of them; b"" if there are none yet.
        Raises Dropped."""
        if number >= self._newest_first:
            return b"".join(self._newest[number - self._newest_first :])
        first, block = self._block_of(number)
        return _END.join(zlib.decompress(block).split(_END)[number - first :])

    def shown(self, events: bytes) -> Iterator[bytes]:
        """Yield recorded events as clients get them, in pieces."""
        for index, part in enumerate(events.split(MARK)):
            yield from pieces(self._repeated) if index else ()
            yield from pieces(part)

    async def until(self, number: int, within_s: float) -> bool:
        """Return True once event `number` has come, or no more events come; False if neither
        happens in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not self.has_ended and number >= self._newest_first + len(self._newest):
                    await self._grown.wait()
                return True
        return False

    def _block_of(self, number: int) -> tuple[int, bytes]:
        """Return the block of an event, and the number of its first one. Raises Dropped."""
        for block in reversed(self._blocks):
            if block[0] <= number:
                return block
        reason = f"the events before {self._blocks[0][0]} are no longer kept"
        raise Dropped(f"{reason}: retrieve the response")

    def _compress(self) -> None:
        self._keep(zlib.compress(b"".join(self._newest), 1), *self._newest)

    def _keep(self, block: bytes, *events: bytes) -> None:
        """Keep the oldest of the newest events as a block."""
        self._blocks.append((self._newest_first, block))
        self._blocks_bytes += len(block)
        self._newest_first += len(events)
        self._newest = self._newest[len(events) :]
        self._newest_bytes -= sum(map(len, events))
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
    context: RequestContext
    """The context of the request, which may be the recorded answer's, and then goes on."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with connected(receive):
                await send_to_client(send, stream_start(Answer.media_type))
                await self._send_events(send)
            await send_to_client(send, stream_piece(b"", more=False))
        except ClientGone as gone:
            if self.context.claim.goes_on is None:
                self.context.outcome.cut(gone)

    async def _send_events(self, send: Send) -> None:
        number, recording = self.number, self.recording
        while True:
            try:
                self.context.check_key()
                events = recording.since(number)
            except (Dropped, Unauthorized) as error:  # it has read too slowly, or lost its key
                code = "events_dropped" if isinstance(error, Dropped) else error.error_code
                about = {"code": code, "message": str(error), "param": None}
                error_event = {"type": "error", "sequence_number": number, **about}
                return await send_to_client(
                    send, stream_piece(sent_event(error_event, "error"))
                )
            number += events.count(_END)
            if events:
                for piece in recording.shown(events):
                    await send_to_client(send, stream_piece(piece))
            elif recording.has_ended:
                return None
            elif not await recording.until(number, self.keep_alive_s):
                await send_to_client(send, stream_piece(Answer.keep_alive))


# Runs an answer to its end, whoever is connected.

MAX_RUN_S: Final = 7200.0
"""An answer may take this many seconds, as long as a verifier's session by default."""

CHECK_S: Final = 5.0
"""An answer ends within this many seconds if its key is removed."""

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
