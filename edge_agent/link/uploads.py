"""Sends drafts and brings messages in an upload stream: one long request to a verifier's run.

The drafts of all sessions of a connection go there. Its answer carries the messages of the
sessions that ask for it, so that those of one pass cost one piece of a stream. A cut of
the stream is then a cut of these sessions.

The verifier acknowledges the first message of a stream. Until then every message is posted as
well, so a proxy that keeps a request back until its end delays nothing: that connection goes on
with posts. When a stream is cut, its sessions send again what may be lost with it.

A stream leads to one run of a verifier, because a proxy may have several behind it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Final, Protocol

from pyqwest import Client

from edge_agent.link.connection import REQUEST_TIMEOUT_S, Connection
from edge_agent.link.errors import LinkDown
from gateway.background_work import start
from gateway.channel import Channel, ChannelFull
from gateway.errors import ApiError
from speculation import upload_records
from speculation.errors import RemoteProtocolError
from speculation.messages import RUN_CHARACTERS

FIRST_ANSWER_S: Final = 1.0
"""The first acknowledgement must come within two round trips, and at least this time, because a
verifier may be busy."""

ASK_S: Final = 1.0
"""While messages are sent, an acknowledgement is asked for at this interval. It also measures
the round trip, and if it does not come within REQUEST_TIMEOUT_S, the stream is lost."""

MAX_UNSENT_BYTES: Final = 1 << 20
"""A stream with this many bytes that the network does not take is cut: at 64 kbit/s they would
be minutes old when they arrive."""

MAX_ATTEMPTS: Final = 3
"""A connection goes on with posts after this many streams in a row without an acknowledgement:
a process that stood still for a moment is no proxy that holds requests back."""

MIN_MULTIPLEXED: Final = 2
"""A stream carries sessions once it has as many: one alone would save no piece of a stream, and
its name in each record costs bytes."""

MAX_UNREAD_BYTES: Final = 2 << 20
"""A multiplexed session is cut when it has left this many bytes unread, because its client is
slow: as many as the transport would hold for a stream of its own."""


class UploadedTo(Protocol):
    """A verifier, as its upload streams know it."""

    connection: Connection
    rtt_s: float

    def delivered(self, begun: float) -> None:
        """It has got what was sent at `begun`."""

    def uploaded(self, size_bytes: int) -> None:
        """A message of this size was sent."""


class _Acknowledgement:
    """The acknowledgement that a stream waits for, of which there is one at a time.

    within_s: the first must come within this time.
    """

    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        self._asked_at: float | None = None
        self._ask_at = 0.0
        self._patience: asyncio.Timeout | None = None

    def timeout(self) -> asyncio.Timeout:
        """Return the context of the stream, which ends if one does not come in time."""
        self._patience = asyncio.timeout(self._within_s)
        return self._patience

    def asks(self) -> bool:
        """Return True if it is time to ask; it is then asked for."""
        now = time.monotonic()
        if self._asked_at is not None or now < self._ask_at:
            return False
        self._asked_at, self._ask_at = now, now + ASK_S
        self._expect(self._within_s)
        return True

    def came(self) -> float | None:
        """Return when it was asked for; None if it was not."""
        asked_at, self._asked_at = self._asked_at, None
        if asked_at is not None:
            self._within_s = REQUEST_TIMEOUT_S
            self._expect(None)
        return asked_at

    def _expect(self, within_s: float | None) -> None:
        if self._patience is not None and not self._patience.expired():
            now = asyncio.get_running_loop().time()
            self._patience.reschedule(None if within_s is None else now + within_s)


class Upload:
    """One stream, which begins at once.

    run: that of the verifier's process. attempt: the number of streams in a row that were begun
    without an acknowledgement, with this one.
    """

    def __init__(
        self, run: str, verifier: UploadedTo, headers: Mapping[str, str], attempt: int
    ) -> None:
        self.is_open = False
        """True from the first acknowledgement to the end: messages need not be posted."""

        self.attempt = attempt
        """0 once the stream was acknowledged; MAX_ATTEMPTS if no other one should be tried."""

        self.cut = set[Callable[[], object]]()
        """These are called when an open stream ends."""

        self._has_records = False
        """True if the answer can carry sessions, which its first acknowledgement says."""

        self._carried: dict[str, Channel[bytes]] = {}
        self._verifier = verifier
        self._unsent = Channel[bytes](MAX_UNSENT_BYTES, len)
        first_answer_s = max(FIRST_ANSWER_S, 2 * verifier.rtt_s)
        self._acknowledgement = _Acknowledgement(first_answer_s)
        client = verifier.connection.client
        self.task = start(self._follow(run.encode(), headers, client))

    @property
    def carries(self) -> bool:
        """True if sessions should ask the stream to carry them."""
        return self.is_open and self._has_records and len(self.cut) >= MIN_MULTIPLEXED

    def write(self, session: str, frames: bytes) -> None:
        """Send messages of a session soon."""
        self._append(upload_records.encode_record(session, frames))
        self._verifier.uploaded(len(frames))
        self._ask()

    def carry(self, session: str) -> Channel[bytes]:
        """Ask that the answer carries a session's messages; return what will have their frames,
        until `leave`. It ends with the session's last record, or with too many unread bytes."""
        frames = self._carried[session] = Channel[bytes](MAX_UNREAD_BYTES, len)
        self._append(upload_records.encode_record(session))
        return frames

    def leave(self, session: str) -> None:
        """Drop what still comes for a session."""
        self._carried.pop(session, None)

    def _ask(self) -> None:
        """Ask for an acknowledgement if it is time."""
        if self._acknowledgement.asks():
            self._append(upload_records.ASK)

    def _append(self, record: bytes) -> None:
        try:
            self._unsent.put(record)
        except ChannelFull:
            self.task.cancel()

    async def _follow(
        self, run: bytes, headers: Mapping[str, str], client: Client | None
    ) -> None:
        connection = self._verifier.connection
        try:
            async with (
                self._acknowledgement.timeout(),
                connection.upload(self._records(), headers) as pieces,
            ):
                await self._read(pieces, run)
            self._give_up()
        except TimeoutError:
            if self.is_open:
                connection.renew(client)
        except ApiError as error:
            if not isinstance(error, LinkDown):
                self._give_up()
        except RemoteProtocolError:
            self.attempt = MAX_ATTEMPTS
        finally:
            self.is_open = False
            for frames in self._carried.values():
                frames.close()
            for cut in tuple(self.cut):
                cut()

    def _give_up(self) -> None:
        if not self.is_open:
            self.attempt = MAX_ATTEMPTS

    async def _records(self) -> AsyncGenerator[bytes]:
        while records := await self._unsent.take():
            yield b"".join(records)

    async def _read(self, pieces: AsyncIterator[bytes], run: bytes) -> None:
        """Read acknowledgements and records after the run's name, until the stream ends or is
        found to lead to another run. Raises RemoteProtocolError."""
        head, decoder = b"", upload_records.RecordDecoder()
        async for piece in pieces:
            if len(head) < len(run):
                head, piece = head + piece, b""
                head, piece = head[: len(run)], head[len(run) :]
                if not run.startswith(head):
                    return
            if piece and not self.is_open:
                self._has_records = piece.startswith(upload_records.ASK)
            if not self._has_records:
                self._acknowledged(piece)
                continue
            for record in decoder.feed(piece):
                if not record.session:
                    self._acknowledged(upload_records.ASK)
                elif (frames := self._carried.get(record.session)) is not None:
                    _pass_on(record.frames, frames)
            if self._carried:  # the way up stays in use, or a proxy might close it
                self._ask()

    def _acknowledged(self, piece: bytes) -> None:
        if piece and (asked_at := self._acknowledgement.came()) is not None:
            self._verifier.delivered(asked_at)
            self.is_open, self.attempt = True, 0


def _pass_on(frames: bytes, channel: Channel[bytes]) -> None:
    try:
        channel.put(frames) if frames else channel.close()
    except ChannelFull:
        channel.close()


class Uploads:
    """The upload streams of a verifier's connection, by the runs that they lead to."""

    def __init__(self, verifier: UploadedTo) -> None:
        self._verifier = verifier
        self._client: object = None
        self._by_run: dict[str, Upload] = {}
        self._running = set[asyncio.Task[None]]()

    def of(self, session: str, headers: Mapping[str, str]) -> Upload | None:
        """Return the stream for a session's messages; None if they must be posted.

        headers: the session's, by which a proxy finds its verifier.
        """
        client = self._verifier.connection.client
        if client is not None and client is not self._client:
            self._client, self._by_run = client, {}
        run, attempt = session[:RUN_CHARACTERS], 1
        if (latest := self._by_run.get(run)) is not None:
            if not latest.task.done():
                return latest
            if latest.attempt >= MAX_ATTEMPTS:
                return None
            attempt += latest.attempt
        upload = Upload(run, self._verifier, headers, attempt)
        self._by_run[run] = upload
        self._running.add(upload.task)
        upload.task.add_done_callback(self._running.discard)
        return upload

    async def close(self) -> None:
        """End all streams."""
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)
