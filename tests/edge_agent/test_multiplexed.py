"""Sessions that an upload stream carries down share its fate, and are as exact as others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from edge_agent.link import uploads
from edge_agent.link.connection import UPLOADS_PATH
from gateway.errors import EngineFault
from speculation import upload_records, wire
from speculation.messages import Multiplexed
from tests.fakes.link import Stream
from tests.fakes.world import PASS_S, RTT_S, TEXT, VerifierProcess, World

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
        assert upload.up.pieces - pieces[0] >= 80 * PASS_S / uploads.ASK_S / 2


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
