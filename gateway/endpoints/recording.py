"""Records the events of one answer, within a bound.

The newest events are kept as they are, the others in compressed blocks: the event of a token
has 220 bytes, and 10 in a block.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.endpoints.answer import Answer, sent_event
from gateway.endpoints.sending import stream_piece, stream_start
from gateway.errors import ClientGone, Unauthorized
from gateway.http import connected, pieces, send_to_client
from gateway.request_context import RequestContext

BLOCK_BYTES: Final = 1 << 15
"""Events are compressed once they have this many bytes together, which takes 0.1 ms."""

MAX_EVENTS_BYTES: Final = 1 << 18
"""The events of a background response, compressed, have at most this many bytes, the events of
25,000 tokens; beyond, the oldest block is dropped. The last block may be larger by itself."""

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
