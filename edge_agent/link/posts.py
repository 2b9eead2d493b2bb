"""Sends a session's drafts without waiting: on an upload stream, or in repeatable requests.

A few requests are in flight at a time; messages sent meanwhile go with the next one. The
verifier drops what it has already received, so what may be lost is simply sent again: a
request that failed, and after a cut of the upload stream the messages of this epoch that no
Commit has covered.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Final

from edge_agent.link.uploads import Upload
from edge_agent.link.verifier import Verifier
from gateway.errors import Unavailable
from speculation import wire
from speculation.messages import Draft, Pushed

IN_FLIGHT: Final = 8
"""At most this many requests are in flight: one every 25 ms at a round trip of 200 ms. More
would only queue in the network."""

INLINE_TOKENS: Final = 4096
"""An Open of at most this many tokens is encoded at once, in a few milliseconds."""

MAX_MESSAGES: Final = 64
"""A request has at most this many messages, which a verifier takes in within a millisecond or
two: hundreds may wait if the way up was cut, and the way down was not."""

PAUSES_S: Final = (0.0, 0.1, 1.0)
"""A failed request waits this many seconds before each further attempt. When the last one
fails, the session is given up and opened anew."""


class Posts:
    """The messages of one session. headers: see session_headers.

    Its memory is bounded: only messages of the newest epoch are kept, at most `max_ahead` draft
    tokens after the committed text.
    """

    def __init__(self, verifier: Verifier, headers: Mapping[str, str]) -> None:
        self._verifier = verifier
        self._headers = headers
        self._session = ""
        self.upload: Upload | None = None
        """The upload stream in use, even if it is not open yet; None while there is none."""

        self._epoch = 0
        self._waiting: list[Pushed] = []
        self._streamed = deque[Pushed]()
        """These messages are on the upload stream, and no Commit has covered them yet."""

        self._sendable = asyncio.Event()

    def send(self, message: Pushed) -> None:
        """Send a message soon, and forget those of an older epoch, which are void."""
        if message.epoch > self._epoch:
            self._epoch = message.epoch
            self._waiting.clear()
            self._streamed.clear()
        if self.upload is not None and self.upload.is_open:
            self._streamed.append(message)
            self.upload.write(self._session, wire.encode(message))
        else:
            self._waiting.append(message)
            self._sendable.set()

    def committed(self, position: int) -> None:
        """Note that the text before this position is committed."""
        while self._streamed and _end(self._streamed[0]) <= position:
            self._streamed.popleft()

    async def run(self, session: str) -> None:
        """Send until cancelled. Raises gateway.errors.ApiError."""
        self._session = session
        room = asyncio.Semaphore(IN_FLIGHT)
        try:
            async with asyncio.TaskGroup() as posts:
                while True:
                    await room.acquire()
                    await self._sendable.wait()
                    messages = self._waiting[:MAX_MESSAGES]
                    del self._waiting[:MAX_MESSAGES]
                    if not self._waiting:
                        self._sendable.clear()
                    if not messages:  # a newer epoch has made them void
                        room.release()
                        continue
                    self._join(messages[0])
                    frames = b"".join(map(wire.encode, messages))
                    posts.create_task(self._deliver(session, frames, self._epoch, room))
        finally:
            self._leave()

    def _join(self, message: Pushed) -> None:
        """Use the connection's upload stream from its first acknowledgement on. The message is
        posted too."""
        upload = self._verifier.uploads.of(self._session, self._headers)
        if upload is not None and upload is not self.upload:
            self._leave()
            self.upload = upload
            upload.cut.add(self._cut)
            upload.write(self._session, wire.encode(message))

    def _leave(self) -> None:
        if self.upload is not None:
            self.upload.cut.discard(self._cut)
            self.upload = None

    def _cut(self) -> None:
        """Post what may be lost."""
        self._leave()
        self._waiting[:0] = self._streamed
        self._streamed.clear()
        self._sendable.set()

    async def _deliver(
        self, session: str, frames: bytes, epoch: int, room: asyncio.Semaphore
    ) -> None:
        try:
            for pause_s in PAUSES_S:
                try:
                    return await self._verifier.post(session, frames, self._headers)
                except Unavailable:
                    await asyncio.sleep(pause_s)
                    if epoch != self._epoch:
                        return  # the messages are void
            await self._verifier.post(session, frames, self._headers)
        finally:
            room.release()


def _end(message: Pushed) -> int:
    """Return the position after the last one that a message is about."""
    if isinstance(message, Draft):
        return message.start + len(message.tokens)
    return message.position + 1
