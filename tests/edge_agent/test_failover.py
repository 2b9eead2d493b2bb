"""Answers over real connections to verifiers that are killed, stopped, or cut off.

Where an answer goes on is tested over a virtual link: tests/edge_agent/test_sessions.py.
"""

from __future__ import annotations

import asyncio
import signal

import pytest

from edge_agent.link.verifiers import Verifiers
from edge_agent.metrics import EdgeMetrics
from gateway.drain import Drain
from gateway.errors import Draining, Unavailable
from tests.edge_agent.processes import (
    TEXT,
    Answer,
    Process,
    ask,
    running,
    seen,
    start,
    until_cancelled,
    using,
)
from tests.fakes.faulty_link import FaultyLink

GUARD_S = 10.0
"""Long before anything but the beat notices a silent verifier; slow hosts take a while."""


async def test_a_stopped_verifiers_answer_goes_on_and_its_session_is_left(
    metrics: EdgeMetrics,
) -> None:
    with running("", "") as processes:
        async with using([p.url for p in processes], metrics) as verifiers:
            answer, stopped = Answer(verifiers), list[Process]()

            def stop() -> None:
                url = next(v.url for v in verifiers.all if v.open_sessions)
                stopped.extend(p for p in processes if p.url == url)
                stopped[0].running.send_signal(signal.SIGSTOP)

            assert await answer.run(stop) == TEXT
            assert answer.gap_s < GUARD_S
            (left,) = [u for u in verifiers.all if u.url == stopped[0].url]
            assert not left.is_ready
            stopped[0].running.send_signal(signal.SIGCONT)
            await until_cancelled(left.url)


async def test_a_single_verifier_that_is_restarted_goes_on(metrics: EdgeMetrics) -> None:
    with running("") as processes:
        async with (
            using([processes[0].url], metrics) as verifiers,
            asyncio.TaskGroup() as tasks,
        ):

            async def restart() -> None:
                processes[0].kill()
                await asyncio.sleep(1.5)
                processes[0] = await asyncio.to_thread(start, "", processes[0].port)

            def lose() -> None:
                tasks.create_task(restart())

            assert await Answer(verifiers).run(lose) == TEXT

    assert metrics.reopens._value.get() == 1


async def test_an_answer_that_is_cut_off_ends_its_session(metrics: EdgeMetrics) -> None:
    drain, begun = Drain(), asyncio.Event()

    async def answer(verifiers: Verifiers) -> None:
        async with drain.answer():
            await Answer(verifiers).run(begun.set)

    with running("") as (only,):
        async with using([only.url], metrics) as verifiers:
            asking = asyncio.create_task(answer(verifiers))
            await begun.wait()
            drain.hurry()
            await drain.cut()
            with pytest.raises(Unavailable, match="before the answer was complete"):
                await asking
            await until_cancelled(only.url, within_s=2.0)


async def test_after_a_cut_the_session_is_opened_again_where_it_was(
    metrics: EdgeMetrics,
) -> None:
    with running("cut") as (only,):
        async with (
            FaultyLink(only.port) as link,
            using([link.url], metrics) as verifiers,
            asyncio.TaskGroup() as tasks,
        ):

            def cut() -> None:
                tasks.create_task(link.refuse(1.0))

            assert await Answer(verifiers).run(cut) == TEXT
            counted = await seen(link.url)

    assert metrics.reopens._value.get() == 0
    assert metrics.resumes._value.get() == 4
    assert counted["opened"] == counted["replaced"] + 1 == 5
    assert counted["different"] == 1  # a proxy would find the verifier again


async def test_a_connection_that_is_open_and_dead_is_replaced(metrics: EdgeMetrics) -> None:
    with running("") as (only,):
        async with FaultyLink(only.port) as link, using([link.url], metrics) as verifiers:
            answer = Answer(verifiers)

            assert await answer.run(link.half_open) == TEXT
            assert len(link.connections) == 2

    assert answer.gap_s < GUARD_S
    assert metrics.reopens._value.get() == 0


async def test_behind_an_address_that_leads_elsewhere_now_a_draining_verifier_is_left(
    metrics: EdgeMetrics,
) -> None:
    with running("", "") as (old, other):
        async with FaultyLink(old.port) as link, using([link.url], metrics) as verifiers:
            assert await Answer(verifiers, tokens=20).run() == TEXT[:20]
            await ask(old.url, "/drain")
            link.leads_to(other.port)  # later connections, as a Service of Kubernetes has it

            with pytest.raises(Draining):
                await Answer(verifiers, tokens=20).run()

            assert await Answer(verifiers, tokens=20).run() == TEXT[:20]
