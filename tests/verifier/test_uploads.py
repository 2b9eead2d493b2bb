"""An upload stream carries the drafts of many sessions, and their answers if the edge asks."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from gateway.background_work import running_alongside
from gateway.drain import Drain
from gateway.errors import ClientGone
from speculation import upload_records, wire
from speculation.errors import MalformedFrame
from speculation.messages import (
    RUN_CHARACTERS,
    STREAM_HEARTBEAT_S,
    Draft,
    Fault,
    Finish,
    Heartbeat,
    Message,
    Multiplexed,
    Pushed,
)
from speculation.upload_records import ACKNOWLEDGED, ASK, Record, encode_record
from tests.verifier.down import text_of
from tests.verifier.fake_app import (
    ANN,
    BEN,
    NEVER,
    OPEN,
    UploadStream,
    counted,
    failed,
    messages,
    opened,
    record,
    write_keys,
)
from tests.verifier.fake_sessions import running, tenant
from tests.verifier.fake_target import FakeTarget, opening, said
from verifier.sessions import downstream, multiplexed_stream, upstream
from verifier.sessions.downstream import Downstream
from verifier.sessions.multiplexed_stream import PART_BYTES, MultiplexedStream

LENGTH = NEVER.max_tokens
TEXT = [said(NEVER.prompt, at) for at in range(LENGTH)]
DRAFTS = [Draft(0, at, at, (TEXT[at],)) for at in range(4)]
TURNS = 40
"""Of the event loop: more than a pass takes from a Draft to the stream."""


def hold(target: FakeTarget, held: str) -> tuple[asyncio.Event, dict[str, list[Pushed]]]:
    """Have the target take no message of a session until the event is set. Also return the
    messages that it takes of each session."""
    allowed, told = asyncio.Event(), defaultdict[str, list[Pushed]](list)

    async def note(session: str, message: Pushed) -> None:
        if session == held:
            await allowed.wait()
        told[session].append(message)

    target.on_push = note
    return allowed, told


async def test_sessions_get_their_messages_in_order_and_a_slow_one_delays_no_other(
    tmp_path: Path,
) -> None:
    target = FakeTarget(pass_s=0.01)
    async with opened(tmp_path, target) as (app, _, (slow, quick), _answers):
        allowed, told = hold(target, slow)
        stream = UploadStream(app)
        written = b"".join(record(slow, each) + record(quick, each) for each in DRAFTS)
        for at in range(0, len(written), 7):
            stream.write(written[at : at + 7])
        await stream.acknowledged()
        assert told == {quick: DRAFTS}

        allowed.set()
        stream.leave()
        await stream.ended()

    assert stream.answer == slow[:RUN_CHARACTERS].encode() + ACKNOWLEDGED
    assert told == {quick: DRAFTS, slow: DRAFTS}


@pytest.mark.parametrize(
    ("frames", "times"),
    [(wire.encode(DRAFTS[0]), 40), (b"\x02\xff\x00", 1)],
    ids=["more than it takes", "what no edge sends"],
)
async def test_a_session_that_is_sent_what_is_wrong_ends_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: bytes, times: int
) -> None:
    monkeypatch.setattr(upstream, "MAX_UNREAD_BYTES", 100)
    target = FakeTarget()
    async with opened(tmp_path, target) as (app, _, names, answers):
        hold(target, names[0])
        stream = UploadStream(app)
        for _ in range(times):
            await stream.acknowledged(encode_record(names[0], frames))
        answer = await answers[0]
        await stream.acknowledged(record(names[1], *DRAFTS))

    assert b"protocol_error" in answer
    assert [framed.message for framed in target.pushed] == DRAFTS


@pytest.mark.parametrize("malformed", ["a record", "a wish for records"])
async def test_what_is_malformed_ends_the_stream_and_no_session(
    tmp_path: Path, malformed: str
) -> None:
    """An edge whose stream takes no records may not ask for them."""
    async with opened(tmp_path, FakeTarget()) as (app, ann, names, answers):
        stream = UploadStream(app)
        asks = encode_record(names[0])
        stream.write(asks if "wish" in malformed else record(names[0], *DRAFTS) + b"\xff" * 9)
        await stream.ended()

        assert await failed(ann, 400) == 1
        assert not any(answer.done() for answer in answers)


async def test_records_for_sessions_of_others_are_dropped_and_counted(tmp_path: Path) -> None:
    target = FakeTarget()
    async with opened(tmp_path, target) as (app, ann, names, answers):
        mine, bens = (UploadStream(app, key, has_records=True) for key in (ANN, BEN))
        await bens.acknowledged(record(names[0], *DRAFTS) + record("x" * 16, *DRAFTS))
        await bens.acknowledged(encode_record(names[0]))
        unknown = await failed(ann, 404)
        requests = await counted(ann, 'tenant_requests_total{tenant="ben"}')
        assert target.pushed == []
        await draft(mine, names, *range(LENGTH))
        own = messages([await answers[0]])

    assert (unknown, requests) == (3, 3 + 1)  # the stream itself is a request
    assert text_of(own) == TEXT
    assert multiplexed(names[0], bens) == []


async def test_a_revoked_key_ends_the_stream_and_each_request_and_no_session(
    tmp_path: Path,
) -> None:
    target = FakeTarget()
    async with opened(tmp_path, target) as (app, ann, names, answers):
        stream = UploadStream(app)
        await stream.acknowledged()
        write_keys(tmp_path, "ben")
        await asyncio.sleep(1.1)  # a file of keys is looked at once a second
        stream.write(record(names[0], *DRAFTS))
        await stream.ended()
        refused = await failed(ann, 401)
        posts = [
            await ann.post(path, content=OPEN)
            for path in ("/v1/speculate", f"/v1/speculate/{names[0]}/drafts")
        ]
        assert not any(answer.done() for answer in answers)

    assert refused == 1
    assert [answer.status_code for answer in posts] == [401, 401]
    assert target.pushed == []


@pytest.mark.parametrize("piece", [b"", b"\x10"])
async def test_a_stream_without_a_record_ends(tmp_path: Path, piece: bytes) -> None:
    async with opened(tmp_path, FakeTarget()) as (app, _, _names, answers):
        stream = UploadStream(app)
        for _ in range(4):
            await stream.acknowledged()
            await asyncio.sleep(upstream.SILENT_S / 2)
        stream.write(piece)
        await asyncio.wait_for(stream.task, upstream.SILENT_S)

        assert not any(answer.done() for answer in answers)


def test_each_split_of_records_gives_the_same() -> None:
    written = encode_record("a", b"1") + ASK + encode_record("b" * 64, b"2" * 300)
    whole = list(upload_records.RecordDecoder().feed(written))

    for at in range(len(written)):
        decoder = upload_records.RecordDecoder()
        halves = [*decoder.feed(written[:at]), *decoder.feed(written[at:])]
        assert halves == whole


@pytest.mark.parametrize(
    "malformed", [b"\x81\x80\x04", b"\x80" * 9, b"\x03\x01/1", b"\x01\x05"]
)
def test_a_record_that_no_edge_writes_is_malformed(malformed: bytes) -> None:
    with pytest.raises(MalformedFrame):
        list(upload_records.RecordDecoder().feed(malformed))


# What comes down: the stream's answer carries the sessions whose edge asks for it.


def multiplexed(session: str, stream: UploadStream) -> list[Message]:
    return messages(each.frames for each in stream.records if each.session == session)


async def draft(stream: UploadStream, names: Sequence[str], *positions: int) -> None:
    """Draft the right token for each position, in a pass of its own."""
    for at in positions:
        right = Draft(0, at, 0, (TEXT[at],))
        await stream.acknowledged(b"".join(record(name, right) for name in names))
        for _ in range(TURNS):
            await asyncio.sleep(0)


async def move(stream: UploadStream, names: Sequence[str]) -> None:
    """Have sessions carried from their first Commit on, which is of two tokens."""
    await stream.acknowledged(b"".join(map(encode_record, names)))
    await draft(stream, names, 0)


async def test_the_first_messages_and_those_that_are_multiplexed_are_the_whole_answer(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, FakeTarget()) as (app, _, names, answers):
        stream = UploadStream(app, has_records=True)
        await move(stream, names)
        await draft(stream, names, *range(1, LENGTH))
        own = [messages([await answer]) for answer in answers]

    for name, first in zip(names, own, strict=True):
        rest = multiplexed(name, stream)
        assert isinstance(first[-1], Multiplexed)
        assert text_of(first) == TEXT[:2]
        assert text_of([*first, *rest]) == TEXT
        assert isinstance(rest[-1], Finish)
        assert stream.records.count(Record(name)) == 1
        assert [each for each in stream.records if each.session == name][-1] == Record(name)


async def test_a_session_that_generates_nothing_has_heartbeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downstream, "KEEP_S", 0.1)
    async with opened(tmp_path, FakeTarget()) as (app, _, names, answers):
        stream = UploadStream(app, has_records=True)
        await move(stream, names)
        await asyncio.sleep(3.5 * STREAM_HEARTBEAT_S)
        await draft(stream, names, *range(2, LENGTH))
        own = await answers[0]

    heartbeat = wire.encode(Heartbeat())
    assert Record(names[0], heartbeat) in stream.records
    assert own.endswith(heartbeat)  # proxies would cut a silent stream
    assert own.partition(wire.encode(Multiplexed()))[2] == heartbeat * own.count(heartbeat)


async def test_a_stream_that_ends_ends_the_sessions_that_it_carries(tmp_path: Path) -> None:
    async with opened(tmp_path, FakeTarget(), 3) as (app, _, names, answers):
        stream, other = (UploadStream(app, has_records=True) for _ in range(2))
        await move(stream, names[:1])
        await move(other, names[1:2])
        await stream.acknowledged(encode_record(names[2]))  # and nothing has been sent since
        stream.leave()
        await stream.ended()
        cut = messages([await answers[0]])
        await draft(other, names, *range(LENGTH))
        own = messages([await answers[2]])

    assert isinstance(cut[-1], Multiplexed)
    assert text_of(multiplexed(names[1], other)) == TEXT[2:]
    assert text_of(own) == TEXT


async def test_a_verifier_that_drains_takes_drafts_and_at_last_ends_what_it_carries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drain = Drain()
    monkeypatch.setattr("verifier.app.Drain", lambda: drain)
    monkeypatch.setattr("verifier.app.stopped_by_signals", lambda *_, **__: nullcontext())
    async with opened(tmp_path, FakeTarget()) as (app, _, names, _answers):
        stream = UploadStream(app, has_records=True)
        await move(stream, names)
        drain.begin(60.0)
        await draft(stream, names, 2)
        drain.hurry()
        await asyncio.sleep(0.01)
        assert not stream.task.done()
        routes = app.router.routes[0].endpoint.__self__  # type: ignore[attr-defined]
        await routes.sessions.end_all()
        await stream.ended()

    for name in names:
        *commits, fault = multiplexed(name, stream)
        assert text_of(commits) == TEXT[2:4]
        assert isinstance(fault, Fault)
        assert fault.code == "shutting_down"


async def test_what_is_generated_while_a_session_moves_is_not_lost() -> None:
    own, sent = list[bytes](), list[bytes]()

    async def send(message: dict[str, bytes]) -> None:
        own.append(message.get("body", b""))
        if own[-1].endswith(wire.encode(Multiplexed())):
            await asyncio.sleep(0.05)  # the session ends meanwhile

    async def connected() -> None:
        await asyncio.Event().wait()

    async with running() as (sessions, _, _m), carrying(sent) as stream:
        session = await sessions.open(opening(), tenant())
        session.multiplexed, context = stream, SimpleNamespace()
        await Downstream(session, context)({}, connected, send)  # type: ignore[arg-type]
        await stream.emptied()

    records = list(upload_records.RecordDecoder().feed(b"".join(sent)))
    rest = messages(each.frames for each in records)
    assert records[-1] == Record(session.name)
    assert len(text_of(messages(own))) < len(text_of([*messages(own), *rest])) == 8
    assert isinstance(rest[-1], Finish)


@asynccontextmanager
async def carrying(
    sent: list[bytes], *sessions: str, may_send: asyncio.Event | None = None
) -> AsyncIterator[MultiplexedStream]:
    """Yield a stream that carries sessions. sent: gets its pieces, each once it may."""

    async def send(piece: bytes) -> None:
        sent.append(piece)
        if may_send is not None:
            await may_send.wait()

    stream = MultiplexedStream(upload_records.ASK)
    for name in sessions:
        stream.carry(name, lambda: None)
    async with running_alongside(stream.run(send)):
        yield stream


async def test_what_tasks_write_in_one_turn_of_the_event_loop_goes_in_one_piece() -> None:
    passed, sent = asyncio.Event(), list[bytes]()

    async def session(stream: MultiplexedStream, name: str) -> None:
        for _ in range(2):
            await passed.wait()
            stream.write(name, name.encode())
            passed.clear()

    async with carrying(sent, *"abc") as stream, asyncio.TaskGroup() as tasks:
        for name in "abc":
            tasks.create_task(session(stream, name))
        for _ in range(2):
            await asyncio.sleep(0.01)
            passed.set()
        await asyncio.sleep(0.01)

    assert sent == [b"".join(encode_record(name, name.encode()) for name in "abc")] * 2


async def test_while_a_client_does_not_read_no_acknowledgements_gather() -> None:
    sent, may_send = list[bytes](), asyncio.Event()
    async with carrying(sent, "a", may_send=may_send) as stream:
        await stream.acknowledge(1)
        await asyncio.sleep(0)
        asking = asyncio.create_task(stream.acknowledge(2))
        stream.write("a", b"1")
        await asyncio.sleep(0.01)
        assert not asking.done()
        stream.leave("a")
        may_send.set()
        await asking
        await stream.emptied()

    news = encode_record("a", b"1") + encode_record("a")
    assert b"".join(sent) == ASK + news + ASK * 2


async def test_a_stream_whose_client_leaves_too_much_unread_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(multiplexed_stream, "MAX_UNSENT_BYTES", 100)
    sent, may_send = list[bytes](), asyncio.Event()

    async def write_much() -> None:
        async with carrying(sent, "a", may_send=may_send) as stream:
            for _ in range(200):
                stream.write("a", b"1")
                await asyncio.sleep(0)
            may_send.set()
            await asyncio.Event().wait()

    with pytest.raises(ClientGone):
        await write_much()
    assert len(b"".join(sent)) <= 100 + len(encode_record("a", b"1"))


async def test_more_frames_than_a_record_holds_go_in_several() -> None:
    frames, sent = bytes(range(256)) * 1024, list[bytes]()
    async with carrying(sent, "a") as stream:
        stream.write("a", frames)
        stream.leave("a")
        stream.write("a", frames)
        await stream.emptied()

    *records, last = upload_records.RecordDecoder().feed(b"".join(sent))
    assert last == Record("a")
    assert b"".join(each.frames for each in records) == frames
    assert len(records) == len(frames) / PART_BYTES
