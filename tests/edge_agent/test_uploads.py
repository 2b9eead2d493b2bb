"""An upload stream carries messages once it is acknowledged, and loses none that counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.link import uploads
from edge_agent.link.connection import REQUEST_TIMEOUT_S, UPLOADS_PATH
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
from gateway.errors import EngineFault, Unavailable
from speculation import upload_records, wire
from speculation.messages import Draft, Message, Multiplexed
from tests.fakes.link import Stream
from tests.fakes.world import PASS_S, RTT_S, TEXT, VerifierProcess, World
from tests.virtual_time import run

RUN = "12345678"
SESSION = f"{RUN}-abc"


class FakePath:
    """A Verifier and its Connection, and what befalls its upload streams."""

    def __init__(self) -> None:
        self.client: object = object()
        self.run = RUN
        self.holds_back = self.breaks = self.refuses = self.is_silent = self.is_flaky = False
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
        if self.is_flaky and self.posts % 2:
            raise Unavailable("not now")
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


async def test_messages_go_on_the_stream_once_it_is_acknowledged() -> None:
    path = FakePath()
    async with path.sending() as posts:
        await send(posts, *range(20))

    assert path.streams == 1
    assert path.posts < 3
    assert path.streamed[0] == draft(0)
    assert path.streamed[-1] == draft(19)
    assert {*path.arrived, *path.streamed} == set(map(draft, range(20)))
    assert path.times_s  # of round trips


@pytest.mark.parametrize(
    ("fault", "streams"),
    [
        ({"holds_back": True}, MAX_ATTEMPTS),
        ({"is_silent": True}, MAX_ATTEMPTS),
        ({"breaks": True}, MAX_ATTEMPTS),
        ({"refuses": True}, 1),
        ({"refuses": True, "is_flaky": True}, 1),
        ({"run": "another1"}, 1),
    ],
    ids=["holds back", "silent", "breaks", "refuses", "posts fail too", "another run"],
)
async def test_a_connection_without_an_acknowledgement_goes_on_with_posts(
    fault: dict[str, Any], streams: int
) -> None:
    path = FakePath()
    vars(path).update(fault)
    async with path.sending() as posts:
        for position in range(40):
            await send(posts, position, pause_s=FIRST_ANSWER_S / 4)
            assert path.arrived[-1] == draft(position)

    assert path.streams == streams
    assert path.is_given_up
    assert path.arrived == [draft(at) for at in range(40)]


async def test_a_new_connection_is_tried_anew() -> None:
    path = FakePath()
    path.refuses = True
    async with path.sending() as posts:
        await send(posts, *range(10))
        path.refuses, path.client = False, object()
        await send(posts, *range(10, 30))

    assert path.streams == 2
    assert path.streamed[-1] == draft(29)


async def test_a_stream_without_a_later_acknowledgement_is_lost_with_its_connection() -> None:
    path = FakePath()
    before = path.client
    async with path.sending() as posts:
        await send(posts, *range(10))
        path.is_silent = True
        path.streamed.clear()
        await send(posts, *range(10, 20))

    assert path.client is not before
    assert {draft(at) for at in range(10, 20)} <= set(path.arrived)


async def test_drafts_of_an_older_epoch_that_still_wait_are_dropped() -> None:
    path = FakePath()
    async with path.sending() as posts:
        for position in range(100):
            posts.send(draft(position))
        posts.send(draft(0, epoch=1))

    assert {*path.arrived, *path.streamed} == {draft(0, epoch=1)}


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


# Sessions that a stream carries down share its fate, and are as exact as others.

SESSIONS = 4

Befall = Callable[[VerifierProcess, Stream], object]


async def answers(world: World, befall: Befall, after: int) -> list[list[int]]:
    """Return answers over one connection. befall: its upload stream, after so many tokens."""
    texts: list[list[int]] = [[] for _ in range(SESSIONS)]
    async with asyncio.TaskGroup() as tasks:
        for text in texts:
            tasks.create_task(world.answer(text))
        while len(texts[0]) < after:  # noqa: ASYNC110 - a virtual clock
            await asyncio.sleep(PASS_S / 8)
        for upload in world.processes[0].link.streams(UPLOADS_PATH):
            befall(world.processes[0], upload)
    return texts


def cut_in_a_record(process: VerifierProcess, upload: Stream) -> None:
    record = upload_records.encode_record(next(iter(process.target.running)), bytes(8))
    upload.down.add(record[: len(record) // 2])
    upload.reset()


def end(_: VerifierProcess, upload: Stream) -> None:
    upload.down.add(None)


@pytest.mark.parametrize("cut", [cut_in_a_record, end])
@pytest.mark.parametrize("after", [1, 2, 3, 5, 8, 20, 50, 97])
async def test_wherever_the_stream_is_cut_all_that_it_carries_is_opened_again(
    cut: Befall, after: int
) -> None:
    async with World(1, multiplexes=True) as world:
        assert await answers(world, cut, after) == [TEXT] * SESSIONS

        cuts = world.processes[0].opened - SESSIONS
        assert cuts == SESSIONS if 20 <= after <= 50 else cuts <= SESSIONS
        assert world.gap_s < 5 * RTT_S + 2 * PASS_S
        assert world.metrics.reopens._value.get() == 0


async def test_an_answer_that_has_no_records_is_given_up_on_this_connection() -> None:
    async with World(1, multiplexes=True) as world:
        texts = await answers(world, lambda _, upload: upload.down.add(b"\xff" * 9), 50)

        assert texts == [TEXT] * SESSIONS
        assert world.metrics.multiplexed._value.get() == SESSIONS


async def test_a_session_moves_once() -> None:
    def attack(process: VerifierProcess, upload: Stream) -> None:
        for name in process.target.running:
            upload.down.add(upload_records.encode_record(name, wire.encode(Multiplexed())))

    async with World(1, multiplexes=True) as world:
        with pytest.raises(ExceptionGroup) as raised:
            await answers(world, attack, 50)

        assert raised.group_contains(EngineFault, match="Multiplexed")


async def test_an_edge_that_drafts_no_more_keeps_the_stream_in_use() -> None:
    async with World(1, multiplexes=True) as world:
        world.drafted = 10
        pieces = list[int]()

        texts = await answers(world, lambda _, upload: pieces.append(upload.up.pieces), 20)
        assert texts == [TEXT] * SESSIONS
        (upload,) = world.processes[0].link.streams(UPLOADS_PATH)
        assert upload.up.pieces - pieces[0] >= 80 * PASS_S / ASK_S / 2


async def test_a_client_that_does_not_read_delays_no_other_one_and_gets_all_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uploads, "MAX_UNREAD_BYTES", 300)
    first: list[int] = []
    others: list[list[int]] = [[], [], []]
    read = asyncio.Event()

    async def took(text: list[int]) -> None:
        if text is first and len(text) >= 30:
            await read.wait()

    async with World(1, multiplexes=True) as world:
        world.took = took  # type: ignore[method-assign]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(world.answer(first))
            async with asyncio.TaskGroup() as quick:
                for text in others:
                    quick.create_task(world.answer(text))
            assert world.gap_s < 2 * RTT_S + 2 * PASS_S
            read.set()

        assert [first, *others] == [TEXT] * 4
        assert world.metrics.resumes._value.get() == 1  # only so much was kept for it


@pytest.mark.parametrize("sessions", [1, 16])
async def test_a_connection_carries_its_sessions_unless_there_is_only_one(
    sessions: int,
) -> None:
    async with World(1, multiplexes=None) as world:
        texts: list[list[int]] = [[] for _ in range(sessions)]

        await asyncio.gather(*map(world.answer, texts))

        assert texts == [TEXT] * sessions
        assert world.metrics.multiplexed._value.get() == (sessions if sessions > 1 else 0)
