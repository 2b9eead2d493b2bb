"""Answers over real connections to verifiers that are killed, stopped, or cut off.

Where an answer goes on is tested over a virtual link: tests/edge_agent/test_sessions.py.
"""

from __future__ import annotations

import asyncio
import signal

import pytest

from picospec.edge_agent.link.connection import Connection
from picospec.edge_agent.link.verifiers import Verifiers
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.gateway.drain import Drain
from picospec.gateway.errors import Draining, Unavailable
from tests.edge_agent.faulty_link import FaultyLink
from tests.edge_agent.fleet import TEXT, Answer, running, seen, using
from tests.edge_agent.processes import start

NOTICED_S = 1.0


async def told(url: str, path: str) -> None:
    answer = await Connection(url, key=None, ca_certificate=None).ask("GET", path)
    assert answer.status == 204


async def test_a_killed_verifiers_answer_goes_on_at_the_other_at_once(
    metrics: EdgeMetrics,
) -> None:
    with running("", "") as processes:
        async with using([p.url for p in processes], metrics) as verifiers:
            answer = Answer(verifiers, metrics)

            async def kill() -> None:
                (used,) = [p for p in processes if p.url == verifiers.current.url]
                used.kill()

            assert await answer.run(kill) == TEXT

    assert answer.gap_s < NOTICED_S
    assert metrics.reopens._value.get() == 1


async def test_a_stopped_verifiers_answer_goes_on_and_its_session_is_left(
    metrics: EdgeMetrics,
) -> None:
    with running("", "") as processes:
        async with using([p.url for p in processes], metrics) as verifiers:
            stopped = processes[0]

            async def stop() -> None:
                nonlocal stopped
                (stopped,) = [p for p in processes if p.url == verifiers.current.url]
                stopped.running.send_signal(signal.SIGSTOP)

            answer = Answer(verifiers, metrics)
            assert await answer.run(stop) == TEXT

            assert answer.gap_s < NOTICED_S + 0.5
            (left,) = [u for u in verifiers.uplinks if u.url == stopped.url]
            assert not left.endpoint.is_ready
            stopped.running.send_signal(signal.SIGCONT)
            async with asyncio.timeout(5):
                while not (await seen(stopped.url))["cancelled"]:  # noqa: ASYNC110 - a process
                    await asyncio.sleep(0.1)


async def test_a_single_verifier_that_is_restarted_goes_on(metrics: EdgeMetrics) -> None:
    with running("") as processes:
        async with using([processes[0].url], metrics) as verifiers:

            async def restart() -> None:
                processes[0].kill()
                await asyncio.sleep(1.5)
                processes[0] = await asyncio.to_thread(start, "", processes[0].port)

            async def lose() -> None:
                restarts.append(asyncio.create_task(restart()))

            restarts: list[asyncio.Task[None]] = []
            assert await Answer(verifiers, metrics).run(lose) == TEXT
            await asyncio.wait(restarts)

    assert metrics.reopens._value.get() == 1


async def test_an_answer_that_is_cut_off_ends_its_session(metrics: EdgeMetrics) -> None:
    drain, begun = Drain(), asyncio.Event()

    async def ask(verifiers: Verifiers) -> None:
        async def tell() -> None:
            begun.set()

        async with drain.answer():
            await Answer(verifiers, metrics).run(tell)

    with running("") as (only,):
        async with using([only.url], metrics) as verifiers:
            asking = asyncio.create_task(ask(verifiers))
            await begun.wait()
            drain.hurry()
            await drain.cut()
            with pytest.raises(Unavailable, match="before the answer was complete"):
                await asking

            async with asyncio.timeout(2):
                while not (await seen(only.url))["cancelled"]:  # noqa: ASYNC110 - a process
                    await asyncio.sleep(0.02)


async def test_after_a_cut_the_session_is_opened_again_where_it_was(
    metrics: EdgeMetrics,
) -> None:
    with running("cut") as (only,):
        async with FaultyLink(only.port) as link, using([link.url], metrics) as verifiers:

            async def cut() -> None:
                cuts.append(asyncio.create_task(link.refuse(1.0)))

            cuts: list[asyncio.Task[None]] = []
            assert await Answer(verifiers, metrics).run(cut) == TEXT
            counted = await seen(link.url)

    assert metrics.reopens._value.get() == 0
    assert metrics.resumes._value.get() == 4
    assert counted["opened"] == counted["replaced"] + 1 == 5
    assert counted["different"] == 1  # a proxy would find the verifier again


async def test_a_connection_that_is_open_and_dead_is_replaced(metrics: EdgeMetrics) -> None:
    with running("") as (only,):
        async with FaultyLink(only.port) as link, using([link.url], metrics) as verifiers:

            async def half_open() -> None:
                link.half_open()

            answer = Answer(verifiers, metrics)
            assert await answer.run(half_open) == TEXT
            assert len(link.connections) == 2

    assert answer.gap_s < NOTICED_S + 0.5
    assert metrics.reopens._value.get() == 0


async def test_behind_an_address_that_leads_elsewhere_now_a_draining_verifier_is_left(
    metrics: EdgeMetrics,
) -> None:
    with running("", "") as (old, other):
        async with FaultyLink(old.port) as link, using([link.url], metrics) as verifiers:
            assert await Answer(verifiers, metrics, 20).run() == TEXT[:20]
            await told(old.url, "/drain")
            link.leads_to(other.port)  # later connections, as a Service of Kubernetes has it

            with pytest.raises(Draining):
                await Answer(verifiers, metrics, 20).run()

            assert await Answer(verifiers, metrics, 20).run() == TEXT[:20]
