"""How sessions end when nobody sends, nobody reads, or the target cannot go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from picospec.gateway.drain import Drain
from picospec.gateway.errors import Unavailable
from picospec.gateway.http import client
from picospec.gateway.metrics import Metrics
from picospec.speculation.protocol.errors import RemoteProtocolError
from picospec.speculation.protocol.messages import Draft, Fault, Finish, Message, Open, Redraw
from picospec.speculation.protocol.wire import Framed
from picospec.verifier.metrics import SessionMetrics
from picospec.verifier.sessions.downstream import Downstream
from picospec.verifier.sessions.registry import Sessions
from picospec.verifier.sessions.session import Session
from picospec.verifier.settings import SessionSettings
from picospec.verifier.target import TargetFull, UnknownSession, Unservable
from picospec.verifier.target_host import Host
from tests.verifier.down import text_of
from tests.verifier.fake_target import FAILS, SLOW, STALLS, FakeTarget, opening, said

QUICK = 0.05


@asynccontextmanager
async def running(
    target: FakeTarget | None = None, **settings: float
) -> AsyncIterator[tuple[Sessions, FakeTarget, SessionMetrics]]:
    target = target or FakeTarget()
    registry = CollectorRegistry()
    metrics = SessionMetrics(registry, Metrics(registry))
    host = Host(target, Drain())
    sessions = Sessions(host, SessionSettings(**settings), metrics)  # type: ignore[arg-type]
    async with host.running(), sessions.running():
        await asyncio.sleep(0)
        yield sessions, target, metrics
        await sessions.end_all()
        await asyncio.sleep(0)
        assert not target.running
        assert metrics.open._value.get() == 0
    assert target.stopped


async def rest(session: Session, position: int = 0) -> list[Message]:
    messages: list[Message] = []
    with session.read(position) as reader:
        async with asyncio.timeout(10):
            while news := await reader.read():
                messages.extend(entry.message for entry in news)
    return messages


async def ending(session: Session, position: int = 0) -> Fault:
    last = (await rest(session, position))[-1]
    assert isinstance(last, Fault)
    return last


async def test_a_session_without_drafts_or_replies_ends_when_idle() -> None:
    async with running(idle_timeout_s=QUICK, first_token_timeout_s=QUICK) as (sessions, _, _m):
        session = await sessions.open(opening(fill="never"))

        assert (await ending(session)).code == "idle_timeout"


async def test_a_session_whose_edge_reads_nothing_is_free_after_the_resume_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "UNREAD_S", QUICK)

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    async with running(resume_window_s=QUICK) as (sessions, _, _m):
        session = await sessions.open(opening(prompt=(STALLS,)))
        ended = SimpleNamespace(status=200, error=None)
        await Downstream(session.read(0), ended)({}, never, never)  # type: ignore[arg-type]

        assert session.task is not None
        async with asyncio.timeout(2):
            await session.task
        assert ended.status == 499
        assert session.log.ending == Fault(
            "cancelled", f"nobody resumed the session within {QUICK} s", True
        )


async def test_what_a_check_finds_is_raised_before_there_is_a_session() -> None:
    class Checking(FakeTarget):
        async def check(self, request: Open, tenant: str | None = None) -> None:
            await asyncio.sleep(0.01)
            raise Unservable("sampling.extras.structured_outputs.json", "no schema")

    async with running(Checking()) as (sessions, target, _):
        with pytest.raises(Unservable, match="no schema"):
            await sessions.open(opening())

        assert not target.running


async def test_a_draft_postpones_the_idle_end() -> None:
    async with running(idle_timeout_s=0.2, first_token_timeout_s=0.2) as (sessions, _, _m):
        session = await sessions.open(opening(fill="never", max_tokens=200))
        for i in range(4):
            await asyncio.sleep(0.1)
            await session.push([Framed(Draft(i, session.log.tokens, 0, (1,)))])

        assert session.log.ending is None
        assert (await ending(session)).code == "idle_timeout"


async def test_a_long_prefill_is_not_idle() -> None:
    async with running(idle_timeout_s=QUICK, first_token_timeout_s=0.3) as (sessions, _, _m):
        session = await sessions.open(opening(prompt=(STALLS,)))
        await asyncio.sleep(4 * QUICK)

        assert session.log.ending is None
        assert (await ending(session)).code == "idle_timeout"


async def test_a_session_nobody_reads_ends_after_the_resume_window() -> None:
    async with running(resume_window_s=QUICK) as (sessions, target, _):
        session = await sessions.open(opening(prompt=(STALLS,)))
        await asyncio.sleep(3 * QUICK)

        assert session.log.ending == Fault(
            "cancelled", f"nobody resumed the session within {QUICK:g} s", retryable=True
        )
        assert not target.running


async def test_a_session_whose_reader_left_ends_after_the_resume_window() -> None:
    async with running(resume_window_s=QUICK) as (sessions, _, _m):
        session = await sessions.open(opening(prompt=(STALLS,)))
        with session.read(0):
            await asyncio.sleep(3 * QUICK)
        assert session.log.ending is None

        await asyncio.sleep(3 * QUICK)
        assert session.log.ending is not None


async def test_a_reader_who_comes_back_when_the_time_is_up_reads_why_the_session_ended() -> (
    None
):
    async with running(resume_window_s=QUICK) as (sessions, _, _m):
        session = await sessions.open(opening(prompt=(STALLS,)))
        while not (session._timer and session._timer.expired()):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0)

        fault = await ending(session)

    assert (fault.code, fault.retryable) == ("cancelled", True)


async def test_a_reader_who_comes_back_in_time_keeps_the_session() -> None:
    async with running(resume_window_s=0.2) as (sessions, _, _m):
        session = await sessions.open(opening(prompt=(SLOW,), max_tokens=6))
        for _ in range(4):
            with session.read(0):
                await asyncio.sleep(0.1)

        assert text_of(await rest(session)) == [said((SLOW,), i) for i in range(6)]


async def test_an_ended_session_is_forgotten_after_the_resume_window() -> None:
    async with running(resume_window_s=QUICK) as (sessions, _, _m):
        session = await sessions.open(opening())
        await rest(session)

        assert sessions.find(session.name) is session
        await asyncio.sleep(3 * QUICK)
        with pytest.raises(UnknownSession):
            sessions.find(session.name)


async def test_only_so_many_ended_sessions_are_kept() -> None:
    async with running(max_sessions=2) as (sessions, _, _m):
        ended = []
        for _ in range(5):
            ended.append(await sessions.open(opening()))
            await rest(ended[-1])
            await asyncio.sleep(0)

        with pytest.raises(UnknownSession):
            sessions.find(ended[0].name)
        assert sessions.find(ended[-1].name) is ended[-1]


async def test_a_replacement_that_never_comes_ends_the_session() -> None:
    async with running(replacement_timeout_s=QUICK) as (sessions, _, _m):
        session = await sessions.open(opening(judge="separate", fill="never"))
        await session.push([Framed(Draft(0, 0, 0, (said((4,), 0) + 1,), q=(65536,)))])

        assert (await ending(session)).code == "replacement_timeout"


async def test_asking_for_more_of_the_tail_does_not_postpone_the_replacement() -> None:
    async with running(replacement_timeout_s=0.2) as (sessions, _, _m):
        session = await sessions.open(opening(judge="separate", fill="never"))
        await session.push([Framed(Draft(0, 0, 0, (said((4,), 0) + 1,), q=(65536,)))])
        reading = asyncio.create_task(ending(session))
        for draw in range(1, 7):
            await asyncio.sleep(0.06)
            if session.log.ending is None:
                await session.push([Framed(Redraw(0, 0, draw))])

        assert reading.done()
        assert (await reading).code == "replacement_timeout"


async def test_a_hundred_redraws_leave_one_reject_to_read() -> None:
    async with running() as (sessions, _, _m):
        session = await sessions.open(opening(judge="separate", fill="never"))
        await session.push([Framed(Draft(0, 0, 0, (said((4,), 0) + 1,), q=(65536,)))])
        for draw in range(1, 101):
            await session.push([Framed(Redraw(0, 0, draw))])
        await asyncio.sleep(QUICK)

        with session.read(0) as reader:
            assert len(await reader.read()) == 1


async def test_a_dishonest_draft_ends_the_session() -> None:
    async with running() as (sessions, _, metrics):
        session = await sessions.open(opening(fill="never"))
        with pytest.raises(RemoteProtocolError):
            await session.push([Framed(Draft(0, 0, 0, (1000,)))])

        assert (await ending(session)).code == "protocol_error"
        await asyncio.sleep(0)
        assert metrics.faults.labels("protocol_error")._value.get() == 1


@pytest.mark.parametrize("prompt", [(STALLS,), (SLOW,)])
async def test_a_cancelled_session_frees_its_slot(prompt: tuple[int, ...]) -> None:
    async with running(FakeTarget(slots=1)) as (sessions, target, _):
        session = await sessions.open(opening(prompt=prompt))
        sessions.cancel(session.name)

        assert (await ending(session)).code == "cancelled"
        assert not target.running
        await rest(await sessions.open(opening()))


async def test_a_target_without_a_slot_refuses_at_once_and_leaves_nothing() -> None:
    async with running(FakeTarget(slots=1)) as (sessions, _, metrics):
        await sessions.open(opening(prompt=(STALLS,)))
        with pytest.raises(TargetFull):
            await sessions.open(opening())
        await asyncio.sleep(0)

        assert metrics.open._value.get() == 1


async def test_a_failing_target_is_a_fault() -> None:
    async with running() as (sessions, _, metrics):
        session = await sessions.open(opening(prompt=(FAILS,)))

        assert await ending(session) == Fault("target_failed", "it broke", retryable=True)
        await asyncio.sleep(0)
        assert metrics.faults.labels("target_failed")._value.get() == 1


async def test_shutting_down_tells_every_reader() -> None:
    async with running() as (sessions, _, _m):
        session = await sessions.open(opening(prompt=(STALLS,)))
        reading = asyncio.create_task(ending(session))
        await asyncio.sleep(0)
        await sessions.end_all()

        assert (await reading).code == "shutting_down"


async def test_nothing_opens_while_the_target_loads() -> None:
    async with running(FakeTarget(starts=False)) as (sessions, _, _m):
        with pytest.raises(Unavailable, match="loading"):
            await sessions.open(opening())


async def test_a_later_reader_ends_the_earlier_ones_reading() -> None:
    async with running() as (sessions, _, _m):
        session = await sessions.open(opening(prompt=(SLOW,), max_tokens=3))
        first = asyncio.create_task(rest(session))
        await asyncio.sleep(0)
        second = await rest(session)

        assert not any(isinstance(message, Finish) for message in await first)
        assert isinstance(second[-1], Finish)
