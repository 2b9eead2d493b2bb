"""The answer of an upload stream carries the sessions whose edge asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from gateway.background_work import running_alongside
from gateway.drain import Drain
from gateway.errors import ClientGone
from speculation import upload_records, wire
from speculation.messages import (
    STREAM_HEARTBEAT_S,
    Draft,
    Fault,
    Finish,
    Heartbeat,
    Message,
    Multiplexed,
)
from speculation.upload_records import Record, encode_record
from tests.verifier.down import text_of
from tests.verifier.fake_app import BEN
from tests.verifier.fake_sessions import running, tenant
from tests.verifier.fake_target import FakeTarget, opening, said
from tests.verifier.upload_stream import NEVER, UploadStream, failed, opened, record
from verifier.host import Host
from verifier.metrics import VerifierMetrics
from verifier.sessions import downstream, multiplexed_stream
from verifier.sessions.admission import Sessions
from verifier.sessions.downstream import Downstream
from verifier.sessions.multiplexed_stream import PART_BYTES, MultiplexedStream
from verifier.settings import SessionSettings

LENGTH = NEVER.max_tokens
TEXT = [said(NEVER.prompt, at) for at in range(LENGTH)]
TURNS = 40
"""Of the event loop: more than a pass takes from a Draft to the stream."""


def messages(pieces: Iterable[bytes]) -> list[Message]:
    decoder = wire.Decoder()
    found = [message for piece in pieces for message in decoder.feed(piece)]
    return [message for message in found if not isinstance(message, Heartbeat)]


def multiplexed(session: str, stream: UploadStream) -> list[Message]:
    return messages(each.frames for each in stream.records if each.session == session)


def has_left(session: str, stream: UploadStream) -> bool:
    return Record(session) in stream.records


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
    async with opened(tmp_path, FakeTarget()) as (app, names, answers):
        stream = UploadStream(app, has_records=True)
        await move(stream, names)
        await draft(stream, names, *range(1, LENGTH))
        own = [messages([await asyncio.wait_for(answer, 5)]) for answer in answers]

    for name, first in zip(names, own, strict=True):
        rest = multiplexed(name, stream)
        assert isinstance(first[-1], Multiplexed)
        assert text_of(first) == TEXT[:2]
        assert text_of([*first, *rest]) == TEXT
        assert isinstance(rest[-1], Finish)
        assert stream.records.count(Record(name)) == 1
        assert [each for each in stream.records if each.session == name][-1] == Record(name)


async def test_what_tasks_write_in_one_turn_of_the_event_loop_goes_in_one_piece() -> None:
    multiplexed, passed, sent = (
        MultiplexedStream(upload_records.ASK),
        asyncio.Event(),
        list[bytes](),
    )

    async def send(piece: bytes) -> None:
        sent.append(piece)

    async def session(name: str) -> None:
        multiplexed.carry(name, lambda: None)
        for _ in range(2):
            await passed.wait()
            multiplexed.write(name, name.encode())
            passed.clear()

    async with running_alongside(multiplexed.run(send)) as tasks:
        for name in "abc":
            tasks.create_task(session(name))
        for _ in range(2):
            await asyncio.sleep(0.01)
            passed.set()
        await asyncio.sleep(0.01)

    assert sent == [b"".join(encode_record(name, name.encode()) for name in "abc")] * 2


async def test_a_session_that_generates_nothing_has_heartbeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downstream, "KEEP_S", 0.1)
    async with opened(tmp_path, FakeTarget()) as (app, names, answers):
        stream = UploadStream(app, has_records=True)
        await move(stream, names)
        await asyncio.sleep(3.5 * STREAM_HEARTBEAT_S)
        await draft(stream, names, *range(2, LENGTH))
        own = await asyncio.wait_for(answers[0], 5)

    heartbeat = wire.encode(Heartbeat())
    assert Record(names[0], heartbeat) in stream.records
    assert own.endswith(heartbeat)  # proxies would cut a silent stream
    assert own.partition(wire.encode(Multiplexed()))[2] == heartbeat * own.count(heartbeat)


async def test_a_stream_that_ends_ends_the_sessions_that_it_carries(tmp_path: Path) -> None:
    target = FakeTarget()
    async with opened(tmp_path, target, 3) as (app, names, answers):
        stream, other = (UploadStream(app, has_records=True) for _ in range(2))
        await move(stream, names[:1])
        await move(other, names[1:2])
        await stream.acknowledged(encode_record(names[2]))  # and nothing has been sent since
        stream.leave()
        await stream.ended()
        cut = messages([await asyncio.wait_for(answers[0], 5)])
        await draft(other, names, *range(LENGTH))
        own = messages([await asyncio.wait_for(answers[2], 5)])

    assert isinstance(cut[-1], Multiplexed)
    assert text_of(multiplexed(names[1], other)) == TEXT[2:]
    assert text_of(own) == TEXT


async def test_an_edge_that_leaves_a_session_leaves_the_others(tmp_path: Path) -> None:
    async with opened(tmp_path, FakeTarget()) as (app, names, answers):
        stream = UploadStream(app, has_records=True)
        await move(stream, names)
        answers[0].cancel()
        await draft(stream, names, *range(2, LENGTH))

    assert multiplexed(names[0], stream) == []
    assert has_left(names[0], stream)
    assert text_of(multiplexed(names[1], stream)) == TEXT[2:]


async def test_a_session_of_another_key_is_not_multiplexed(tmp_path: Path) -> None:
    async with opened(tmp_path, FakeTarget()) as (app, names, answers):
        mine, bens = (UploadStream(app, *key, has_records=True) for key in ((), (BEN,)))
        await bens.acknowledged(encode_record(names[0]))
        assert await failed(app, 404) == 1
        await draft(mine, names, *range(LENGTH))
        own = messages([await asyncio.wait_for(answers[0], 5)])

    assert text_of(own) == TEXT
    assert multiplexed(names[0], bens) == []


async def test_an_edge_that_takes_no_records_may_not_ask_for_them(tmp_path: Path) -> None:
    async with opened(tmp_path, FakeTarget()) as (app, names, answers):
        stream = UploadStream(app)
        stream.write(encode_record(names[0]))
        await stream.ended()

        assert await failed(app, 400) == 1
        assert not any(answer.done() for answer in answers)


async def test_a_verifier_that_stops_says_so_to_the_sessions_that_are_multiplexed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drain, made = Drain(), list[Sessions]()

    def make(host: Host, settings: SessionSettings, metrics: VerifierMetrics) -> Sessions:
        made.append(Sessions(host, settings, metrics))
        return made[0]

    monkeypatch.setattr("verifier.app.Sessions", make)
    monkeypatch.setattr("verifier.app.Drain", lambda: drain)
    monkeypatch.setattr("verifier.app.stopped_by_signals", lambda *_, **__: nullcontext())
    async with opened(tmp_path, FakeTarget()) as (app, names, _):
        stream = UploadStream(app, has_records=True)
        await move(stream, names)
        drain.hurry()
        await asyncio.sleep(0.01)
        assert not stream.task.done()
        await made[0].end_all()
        await stream.ended()

    for name in names:
        (fault,) = multiplexed(name, stream)
        assert isinstance(fault, Fault)
        assert fault.code == "shutting_down"


async def test_what_is_generated_while_a_session_moves_is_not_lost() -> None:
    own, sent = list[bytes](), list[bytes]()

    async def send(message: dict[str, bytes]) -> None:
        own.append(message.get("body", b""))
        if own[-1].endswith(wire.encode(Multiplexed())):
            await asyncio.sleep(0.05)  # the session ends meanwhile

    async def carry(piece: bytes) -> None:
        sent.append(piece)

    async def connected() -> None:
        await asyncio.Event().wait()

    async with running() as (sessions, _, _m):
        session = await sessions.open(opening(), tenant())
        session.multiplexed = multiplexed = MultiplexedStream(upload_records.ASK)
        carrying = asyncio.create_task(multiplexed.run(carry))
        context = SimpleNamespace()
        await Downstream(session, context)({}, connected, send)  # type: ignore[arg-type]
        await multiplexed.emptied()
        carrying.cancel()

    records = list(upload_records.RecordDecoder().feed(b"".join(sent)))
    rest = messages(each.frames for each in records)
    assert records[-1] == Record(session.name)
    assert len(text_of(messages(own))) < len(text_of([*messages(own), *rest])) == 8
    assert isinstance(rest[-1], Finish)


async def test_while_a_client_does_not_read_no_acknowledgements_gather() -> None:
    sent, may_send = list[bytes](), asyncio.Event()

    async def send(piece: bytes) -> None:
        sent.append(piece)
        await may_send.wait()

    multiplexed = MultiplexedStream(upload_records.ASK)
    multiplexed.carry("a", lambda: None)
    running = asyncio.create_task(multiplexed.run(send))
    await multiplexed.acknowledge(1)
    await asyncio.sleep(0)
    asking = asyncio.create_task(multiplexed.acknowledge(2))
    multiplexed.write("a", b"1")
    await asyncio.sleep(0.01)
    assert not asking.done()
    multiplexed.leave("a")
    may_send.set()
    await asking
    await multiplexed.emptied()
    running.cancel()

    assert b"".join(sent) == b"".join(
        [
            upload_records.ASK,
            encode_record("a", b"1"),
            encode_record("a"),
            upload_records.ASK * 2,
        ]
    )


async def test_a_stream_whose_client_leaves_too_much_unread_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(multiplexed_stream, "MAX_UNSENT_BYTES", 100, raising=False)
    sent, may_send = list[bytes](), asyncio.Event()

    async def send(piece: bytes) -> None:
        sent.append(piece)
        await may_send.wait()

    multiplexed = MultiplexedStream(upload_records.ASK)
    multiplexed.carry("a", lambda: None)
    running = asyncio.create_task(multiplexed.run(send))
    for _ in range(200):
        multiplexed.write("a", b"1")
        await asyncio.sleep(0)
    may_send.set()

    with pytest.raises(ClientGone):
        await asyncio.wait_for(running, 1)
    assert len(b"".join(sent)) <= 100 + len(encode_record("a", b"1"))


async def test_more_frames_than_a_record_holds_go_in_several() -> None:
    frames, sent = bytes(range(256)) * 1024, list[bytes]()

    async def send(piece: bytes) -> None:
        sent.append(piece)

    multiplexed = MultiplexedStream(upload_records.ASK)
    multiplexed.carry("a", lambda: None)
    multiplexed.write("a", frames)
    multiplexed.leave("a")
    multiplexed.write("a", frames)
    running = asyncio.create_task(multiplexed.run(send))
    await multiplexed.emptied()
    running.cancel()

    *records, last = upload_records.RecordDecoder().feed(b"".join(sent))
    assert last == Record("a")
    assert b"".join(each.frames for each in records) == frames
    assert len(records) == len(frames) / PART_BYTES
