"""Sessions that an upload stream carries down share its fate, and are as exact as others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from edge_agent.link import uploads
from edge_agent.link.connection import Connection, LinkDown
from edge_agent.link.session import EdgeSession
from edge_agent.link.verifier import Verifier
from edge_agent.metrics import EdgeMetrics
from gateway.drain import running_alongside
from gateway.errors import EngineFault
from speculation import wire
from speculation.messages import Commit, Draft, Finish, Multiplexed
from tests.edge_agent.fake_verifier import target_at
from tests.edge_agent.processes import running, seen, using
from tests.edge_agent.test_proxies import LONG, session
from tests.edge_agent.test_stalls import Carrying
from tests.edge_agent.virtual import PASS_S, RTT_S, TEXT, FakeVerifier, run
from tests.fakes.faulty_link import FaultyLink
from tests.verifier.conftest import KEY, fake_verifier
from tests.verifier.fake_target import opening, said

SESSIONS = 4


def answers(
    world: Carrying, befalls: Callable[[FakeVerifier], None], after: int
) -> list[list[int]]:
    """Return answers over one connection. befalls: the verifier, after so many tokens."""
    texts: list[list[int]] = [[] for _ in range(SESSIONS)]

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            for text in texts:
                tasks.create_task(world.answer(text))
            while len(texts[0]) < after:  # noqa: ASYNC110 - virtual
                await asyncio.sleep(PASS_S / 8)
            befalls(world.verifiers[0])

    run(main())
    return texts


def cut_in_a_record(verifier: FakeVerifier) -> None:
    record = wire.encode_record(next(iter(verifier.sessions)), bytes(8))
    for upload in verifier.uploads:
        upload.put_nowait(record[: len(record) // 2])
        upload.put_nowait(LinkDown("cut", "broken"))


def end(verifier: FakeVerifier) -> None:
    for upload in verifier.uploads:
        upload.put_nowait(b"")


@pytest.mark.parametrize("cut", [cut_in_a_record, end])
@pytest.mark.parametrize("after", [1, 2, 3, 4, 5, 6, 7, 8, 20, 50, 97, 99])
def test_wherever_the_stream_is_cut_all_that_it_carries_is_opened_again(
    cut: Callable[[FakeVerifier], None], after: int
) -> None:
    world = Carrying(1)

    assert answers(world, cut, after) == [TEXT] * SESSIONS
    cuts = world.verifiers[0].opened - SESSIONS
    assert cuts == SESSIONS if after >= 20 else cuts <= SESSIONS
    assert world.gap_s < 2 * RTT_S + 2 * PASS_S
    assert world.metrics.reopens._value.get() == 0


def test_an_answer_that_has_no_records_is_given_up_on_this_connection() -> None:
    world = Carrying(1)

    def attack(verifier: FakeVerifier) -> None:
        for upload in verifier.uploads:
            upload.put_nowait(b"\xff" * 9)

    assert answers(world, attack, 50) == [TEXT] * SESSIONS
    assert world.metrics.multiplexed._value.get() == SESSIONS


def test_a_session_moves_once() -> None:
    def attack(verifier: FakeVerifier) -> None:
        multiplexed = wire.encode(Multiplexed())
        for name, upload in verifier.multiplexed.items():
            upload.put_nowait(wire.encode_record(name, multiplexed))

    with pytest.raises(ExceptionGroup) as raised:
        answers(Carrying(1), attack, 50)
    assert raised.group_contains(EngineFault, match="Multiplexed")


def test_an_edge_that_drafts_no_more_keeps_the_stream_in_use() -> None:
    world, seconds = Carrying(1), len(TEXT) * PASS_S
    world.drafted = 10

    assert answers(world, lambda _: None, 50) == [TEXT] * SESSIONS
    assert seconds / 2 < world.verifiers[0].acknowledged < 2 * seconds


def test_a_client_that_does_not_read_delays_no_other_one_and_gets_all_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uploads, "MAX_UNREAD_BYTES", 300)
    first: list[int] = []
    others: list[list[int]] = [[], [], []]
    read = asyncio.Event()

    class OneIsSlow(Carrying):
        async def took(self, text: list[int]) -> None:
            if text is first and len(text) == 30:
                await read.wait()

    async def main() -> OneIsSlow:
        world = OneIsSlow(1)
        async with asyncio.TaskGroup() as tasks:
            slow = tasks.create_task(world.answer(first))
            async with asyncio.TaskGroup() as quick:
                for text in others:
                    quick.create_task(world.answer(text))
            assert world.gap_s < RTT_S + 2 * PASS_S
            read.set()
            await slow
        return world

    world = run(main())

    assert [first, *others] == [TEXT] * 4
    assert world.metrics.resumes._value.get() == 1  # only so much was kept for it


@pytest.mark.system
async def test_a_cut_link_costs_no_token_of_those_that_are_multiplexed(
    metrics: EdgeMetrics,
) -> None:
    async def cut(link: FaultyLink) -> None:
        async with asyncio.timeout(30):
            while (await seen(link.url))["carried"] < 2:  # noqa: ASYNC110 - a process
                await asyncio.sleep(0.02)
        await link.refuse(0.3)

    with running("") as (only,):
        async with FaultyLink(only.port) as link, using([link.url], metrics) as verifiers:
            each = (session(verifiers, "", LONG) for _ in range(SESSIONS))
            *texts, _ = await asyncio.gather(*each, cut(link))

    assert texts == [[target_at(at) for at in range(LONG)]] * SESSIONS
    assert metrics.resumes._value.get() >= 2


@pytest.mark.system
@pytest.mark.parametrize("sessions", [1, 16])
async def test_a_verifiers_process_carries_sessions_unless_there_is_only_one(
    metrics: EdgeMetrics, sessions: int
) -> None:
    tokens = 200

    async def text(verifier: Verifier, first: int) -> bool:
        prompt, found = (first, 5, 6), list[int]()
        request = opening(prompt=prompt, max_tokens=tokens, fill="auto")
        opened = EdgeSession(verifier, request)
        async with asyncio.timeout(60), running_alongside(opened.post()):
            async for message in opened.events():
                if isinstance(message, Commit):
                    found += message.tokens
                    at = len(found)
                    if at < tokens:
                        opened.send(Draft(0, at, 0, (said(prompt, at),)))
                if isinstance(message, Finish):
                    break
        return found == [said(prompt, at) for at in range(tokens)]

    with fake_verifier(sessions={"max_sessions": sessions}) as (_, url):
        verifier = Verifier(Connection(url, key=KEY, ca_certificate=None), metrics)
        async with asyncio.TaskGroup() as tasks:
            texts = [tasks.create_task(text(verifier, 40 + n)) for n in range(sessions)]
        await verifier.uploads.close()

    assert all(text.result() for text in texts)
    multiplexed = metrics.multiplexed._value.get()  # not those that a busy machine opens late
    assert multiplexed > 1 if sessions > 1 else multiplexed == 0
