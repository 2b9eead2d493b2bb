"""An upload stream carries the drafts of many sessions, and none of them waits for another."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path

import pytest

from gateway.drain import Drain
from speculation import upload_records
from speculation.errors import MalformedFrame
from speculation.messages import RUN_CHARACTERS, Draft, Pushed
from speculation.upload_records import ACKNOWLEDGED, ASK, encode_record
from speculation.wire import Framed
from tests.verifier.fake_app import BEN, write_keys
from tests.verifier.fake_target import FakeTarget, said
from tests.verifier.upload_stream import NEVER, UploadStream, counted, failed, opened, record
from verifier.sessions import upstream

OTHER = "x" * 16
DRAFTS = [Draft(0, at, at, (said(NEVER.prompt, at),)) for at in range(4)]


class Told(FakeTarget):
    """A Told keeps the messages of each session apart: only within one is their order fixed."""

    def __init__(self, pass_s: float) -> None:
        super().__init__(pass_s=pass_s)
        self.told = defaultdict[str, list[object]](list)

    async def push(self, session: str, message: Framed[Pushed]) -> None:
        self.told[session].append(message.message)
        await super().push(session, message)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_sessions_get_their_messages_however_the_stream_is_cut_into_pieces(
    tmp_path: Path, size: int
) -> None:
    target = Told(pass_s=0.01)
    async with opened(tmp_path, target) as (app, names, _):
        stream = UploadStream(app)
        written = b"".join(record(name, *DRAFTS) for name in names)
        for at in range(0, len(written), size):
            stream.write(written[at : at + size])
        await stream.acknowledged()
        stream.leave()
        await stream.ended()

    assert stream.answer == names[0][:RUN_CHARACTERS].encode() + ACKNOWLEDGED
    assert target.told == dict.fromkeys(names, DRAFTS)


class Slow(FakeTarget):
    """It takes no message of one session until it is allowed."""

    slow = ""

    def __init__(self) -> None:
        super().__init__()
        self.allowed = asyncio.Event()

    async def push(self, session: str, message: Framed[Pushed]) -> None:
        if session == self.slow:
            await self.allowed.wait()
        await super().push(session, message)


async def test_a_slow_session_delays_no_other_one(tmp_path: Path) -> None:
    target = Slow()
    async with opened(tmp_path, target) as (app, names, _):
        target.slow, stream = names[0], UploadStream(app)
        for draft in DRAFTS:
            await stream.acknowledged(record(names[0], draft) + record(names[1], draft))
        before = [framed.message for framed in target.pushed]
        target.allowed.set()
        await stream.acknowledged()
        await asyncio.sleep(0.01)
        after = [framed.message for framed in target.pushed]

    assert before == DRAFTS
    assert after == DRAFTS * 2


async def test_a_session_that_leaves_too_much_unread_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "MAX_UNREAD_BYTES", 100)
    target = Slow()
    async with opened(tmp_path, target) as (app, names, answers):
        target.slow, stream = names[0], UploadStream(app)
        for _ in range(40):
            await stream.acknowledged(record(names[0], DRAFTS[0]))
        answer = await asyncio.wait_for(answers[0], 5)
        await stream.acknowledged(record(names[1], *DRAFTS))

    assert b"protocol_error" in answer
    assert [framed.message for framed in target.pushed] == DRAFTS


async def test_a_message_that_no_edge_sends_ends_its_session_alone(tmp_path: Path) -> None:
    target = FakeTarget()
    async with opened(tmp_path, target) as (app, names, answers):
        stream = UploadStream(app)
        await stream.acknowledged(encode_record(names[0], b"\x02\xff\x00"))
        answer = await asyncio.wait_for(answers[0], 5)
        await stream.acknowledged(record(names[1], *DRAFTS))

    assert b"protocol_error" in answer
    assert [framed.message for framed in target.pushed] == DRAFTS


async def test_a_malformed_record_ends_the_stream_and_no_session(tmp_path: Path) -> None:
    target = FakeTarget()
    async with opened(tmp_path, target) as (app, names, answers):
        stream = UploadStream(app)
        stream.write(record(names[0], *DRAFTS) + b"\xff" * 9)
        await stream.ended()

        assert await failed(app, 400) == 1
        assert not any(answer.done() for answer in answers)


async def test_records_for_sessions_of_others_are_dropped_and_counted(tmp_path: Path) -> None:
    target = FakeTarget()
    async with opened(tmp_path, target) as (app, names, _):
        stream = UploadStream(app, BEN)
        await stream.acknowledged(record(names[0], *DRAFTS) + record(OTHER, *DRAFTS))
        unknown = await failed(app, 404)
        requests = await counted(app, 'tenant_requests_total{tenant="ben"}')

    assert target.pushed == []
    assert (unknown, requests) == (2, 2 + 1)  # the stream itself is a request


async def test_a_revoked_key_ends_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "CHECK_S", 0.0)
    monkeypatch.setattr("gateway.keys.CHECK_S", 0.0)
    target = FakeTarget()
    async with opened(tmp_path, target) as (app, names, _):
        stream = UploadStream(app)
        await stream.acknowledged()
        write_keys(tmp_path, "ben")
        stream.write(record(names[0], *DRAFTS))
        await stream.ended()
        refused = await failed(app, 401)

    assert refused == 1
    assert target.pushed == []


@pytest.mark.parametrize("piece", [b"", ASK[:0], b"\x10"])
async def test_a_stream_without_a_record_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: bytes
) -> None:
    monkeypatch.setattr(upstream, "SILENT_S", 0.2)
    async with opened(tmp_path, FakeTarget()) as (app, _, answers):
        stream = UploadStream(app)
        for _ in range(4):
            await stream.acknowledged()
            await asyncio.sleep(0.1)
        stream.write(piece)
        await stream.ended()

        assert not any(answer.done() for answer in answers)


async def test_a_stream_ends_once_the_verifier_has_drained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, drain = FakeTarget(), Drain()
    monkeypatch.setattr("verifier.app.Drain", lambda: drain)
    monkeypatch.setattr("verifier.app.stopped_by_signals", lambda *_, **__: nullcontext())
    async with opened(tmp_path, target) as (app, names, answers):
        stream = UploadStream(app)
        drain.begin(60.0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(stream.task), 0.05)
        for name in names:
            await stream.acknowledged(record(name, *DRAFTS))
        for answer in answers:
            answer.cancel()
        await stream.ended()

    assert [framed.message for framed in target.pushed] == DRAFTS * 2


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
