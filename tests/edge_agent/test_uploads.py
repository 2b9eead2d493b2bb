"""An upload stream carries messages once it is acknowledged, and loses none that counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.link.connection import REQUEST_TIMEOUT_S
from edge_agent.link.errors import LinkDown
from edge_agent.link.posts import Posts
from edge_agent.link.uploads import (
    ASK_S,
    FIRST_ANSWER_S,
    MAX_ATTEMPTS,
    Uploads,
    _Acknowledgement,
)
from gateway.background_work import running_alongside
from gateway.errors import EngineFault
from speculation import upload_records, wire
from speculation.messages import Draft, Message
from tests.edge_agent.virtual import RTT_S
from tests.virtual_time import run

RUN = "12345678"
SESSION = f"{RUN}-abc"


class FakePath:
    """A Verifier and its Connection, and what befalls its upload streams."""

    def __init__(self) -> None:
        self.client: object = object()
        self.run = RUN
        self.holds_back = self.breaks = self.refuses = self.is_silent = False
        self.streams = self.posts = 0
        self.is_given_up = False
        self.arrived: list[Message] = []
        self.streamed: list[Message] = []
        self.cut = asyncio.Event()
        self.times_s: list[float] = []
        self.connection, self.rtt_s = self, RTT_S
        self.delivered, self.uploaded = self.times_s.append, lambda _: None
        self.uploads = Uploads(self)  # type: ignore[arg-type]

    def renew(self, _: object) -> None:
        self.client = object()

    @asynccontextmanager
    async def upload(
        self, records: AsyncIterator[bytes], headers: Mapping[str, str]
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        self.streams += 1
        self.cut.clear()
        await asyncio.sleep(RTT_S)
        if self.holds_back:
            await asyncio.Event().wait()
        if self.breaks:
            raise LinkDown("reset", "broken")
        if self.refuses:
            raise EngineFault("no such route")
        yield self._answer(records)

    async def _answer(self, records: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        decoder = upload_records.RecordDecoder()
        yield self.run[:3].encode()
        yield self.run[3:].encode()
        async for piece in records:
            await asyncio.sleep(RTT_S)
            if self.cut.is_set():
                raise LinkDown("cut", "broken")
            for record in decoder.feed(piece):
                if record.frames:
                    assert record.session == SESSION
                    self.streamed += wire.Decoder().feed(record.frames)
                elif not self.is_silent:
                    yield upload_records.ACKNOWLEDGED

    async def post(self, session: str, frames: bytes, headers: Mapping[str, str]) -> None:
        self.posts += 1
        await asyncio.sleep(RTT_S)
        self.arrived += wire.Decoder().feed(frames)

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[Posts]:
        """Yield what sends a session's messages, and let them arrive."""
        posts = Posts(self, {})  # type: ignore[arg-type]
        async with running_alongside(posts.run(SESSION)):
            yield posts
            await asyncio.sleep(REQUEST_TIMEOUT_S + 1.0)
            self.is_given_up = self.uploads.of(SESSION, {}) is None
        await self.uploads.close()


def draft(at: int, epoch: int = 0) -> Draft:
    return Draft(epoch, at, at, (at,))


async def send(posts: Posts, *positions: int, pause_s: float = 3 * RTT_S) -> None:
    for position in positions:
        posts.send(draft(position))
        await asyncio.sleep(pause_s)


def test_messages_go_on_the_stream_once_it_is_acknowledged() -> None:
    async def main() -> FakePath:
        path = FakePath()
        async with path.sending() as posts:
            await send(posts, *range(20))
        return path

    path = run(main())

    assert path.streams == 1
    assert path.posts < 3
    assert path.streamed[0] == draft(0)
    assert path.streamed[-1] == draft(19)
    assert {*path.arrived, *path.streamed} == set(map(draft, range(20)))
    assert path.times_s  # of round trips


@pytest.mark.parametrize(
    ("fault", "streams"),
    [(fault, MAX_ATTEMPTS) for fault in ("holds_back", "is_silent", "breaks")]
    + [("refuses", 1)],
)
def test_a_connection_without_an_acknowledgement_goes_on_with_posts(
    fault: str, streams: int
) -> None:
    async def main() -> FakePath:
        path = FakePath()
        setattr(path, fault, True)
        async with path.sending() as posts:
            for position in range(40):
                await send(posts, position, pause_s=FIRST_ANSWER_S / 4)
                assert path.arrived[-1] == draft(position)
        return path

    path = run(main())

    assert path.streams == streams
    assert path.is_given_up
    assert path.arrived == [draft(at) for at in range(40)]


def test_a_stream_to_another_run_is_left_and_posts_go_on() -> None:
    async def main() -> FakePath:
        path = FakePath()
        path.run = "another1"
        async with path.sending() as posts:
            await send(posts, *range(10))
        return path

    path = run(main())

    assert path.streams == 1
    assert path.is_given_up
    assert path.arrived == [draft(at) for at in range(10)]


def test_a_new_connection_is_tried_anew() -> None:
    async def main() -> FakePath:
        path = FakePath()
        path.refuses = True
        async with path.sending() as posts:
            await send(posts, *range(10))
            path.refuses, path.client = False, object()
            await send(posts, *range(10, 30))
        return path

    path = run(main())

    assert path.streams == 2
    assert path.streamed[-1] == draft(29)


def test_a_stream_without_a_later_acknowledgement_is_lost_with_its_connection() -> None:
    async def main() -> tuple[FakePath, object]:
        path = FakePath()
        before = path.client
        async with path.sending() as posts:
            await send(posts, *range(10))
            path.is_silent = True
            path.streamed.clear()
            await send(posts, *range(10, 20))
        return path, before

    path, before = run(main())

    assert path.client is not before
    assert {draft(at) for at in range(10, 20)} <= set(path.arrived)


@given(st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_cuts_lose_no_message_that_counts(seed: int) -> None:
    chance = Random(seed)

    async def main() -> tuple[FakePath, set[Message]]:
        path, committed, at, epoch = FakePath(), 0, 0, 0
        sent = set[Message]()
        async with path.sending() as posts:
            for _ in range(60):
                event = chance.random()
                if event < 0.1:
                    path.cut.set()
                elif event < 0.15:
                    epoch, at, sent = epoch + 1, committed, set()
                elif event < 0.4:
                    committed = max(committed, chance.randint(committed, at))
                    posts.committed(committed)
                else:
                    message = draft(at, epoch)
                    posts.send(message)
                    sent.add(message)
                    at += 1
                await asyncio.sleep(chance.choice([0.0, RTT_S, 4 * RTT_S]))
        return path, {message for message in sent if message.start >= committed}

    path, counts = run(main())

    assert counts <= {*path.arrived, *path.streamed}


async def test_the_first_acknowledgement_must_come_soonest_and_others_are_asked_for_later() -> (
    None
):
    acknowledgement = _Acknowledgement(FIRST_ANSWER_S)
    async with acknowledgement.timeout() as patience:
        first = acknowledgement.asks(), acknowledgement.asks(), acknowledgement.came()
        assert patience.when() is None

        early = acknowledgement.asks()
        await asyncio.sleep(ASK_S)

        assert (first[:2], early, acknowledgement.asks()) == ((True, False), False, True)
        due_s = (patience.when() or 0.0) - asyncio.get_running_loop().time()
        assert due_s == pytest.approx(REQUEST_TIMEOUT_S)
