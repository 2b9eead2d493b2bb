"""An answer whose verifier is killed, stopped, cut off or full goes on where one is ready."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from picospec.edge_agent.link.connection import Connection
from picospec.edge_agent.link.uplink import Uplink
from picospec.edge_agent.link.verifiers import Verifiers
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.gateway.drain import Drain
from picospec.gateway.errors import Draining, Overloaded, Unavailable
from tests.edge_agent.faulty_link import FaultyLink
from tests.edge_agent.fleet import TEXT, Answer, running, seen, using
from tests.edge_agent.processes import start

NOTICED_S = 1.0
RESUMED_S = 1.0


async def told(url: str, path: str) -> None:
    async with Connection(url, key=None, ca_certificate=None).client as client:
        assert (await client.get(path)).status_code == 204


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


async def test_a_stopped_verifiers_answer_goes_on_and_its_session_is_ended_when_it_is_back(
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

            assert answer.gap_s < NOTICED_S + RESUMED_S + 0.5
            assert not next(u for u in verifiers.uplinks if u.url == stopped.url).health.ready
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


async def test_where_no_verifier_comes_back_there_is_one_error_after_the_deadline(
    metrics: EdgeMetrics,
) -> None:
    with running("") as (only,):
        async with using([only.url], metrics, deadline_s=1.0) as verifiers:
            answer, killed_at = Answer(verifiers, metrics), 0.0

            async def kill() -> None:
                nonlocal killed_at
                only.kill()
                killed_at = time.monotonic()

            with pytest.raises(Unavailable, match="no verifier answers"):
                await answer.run(kill)

            assert 0.9 < time.monotonic() - killed_at < 2.5
            assert answer.tokens == TEXT[: len(answer.tokens)]


async def test_an_answer_that_breaks_verifiers_does_not_break_all(metrics: EdgeMetrics) -> None:
    with running(*["poisoned"] * 4) as processes:
        async with using([p.url for p in processes], metrics) as verifiers:
            with pytest.raises(Unavailable, match="3 verifiers"):
                await Answer(verifiers, metrics).run()

        assert sum(p.running.poll() is None for p in processes) == 1


@pytest.mark.parametrize("name", ["full", "loading", "draining", "locked", "other", "mismatch"])
async def test_a_new_answer_begins_where_it_is_taken(metrics: EdgeMetrics, name: str) -> None:
    with running(name, "") as processes:
        async with using([p.url for p in processes], metrics) as verifiers:
            verifiers.uplinks[0].health.rtt_s = 1e-9  # the best, as far as can be known

            assert await Answer(verifiers, metrics, 20).run() == TEXT[:20]


async def test_a_verifier_that_drains_keeps_its_sessions_and_gets_no_other(
    metrics: EdgeMetrics,
) -> None:
    with running("", "") as processes:
        async with using([p.url for p in processes], metrics) as verifiers:
            drained = verifiers.current.url

            async def drain() -> None:
                await told(verifiers.current.url, "/drain")
                new = Answer(verifiers, metrics, 20)
                assert await new.run() == TEXT[:20]
                assert verifiers.choose("").url != drained  # type: ignore[union-attr]

            answer = Answer(verifiers, metrics)
            assert await answer.run(drain) == TEXT

            await verifiers.probe()
            for uplink in verifiers.uplinks:
                uplink.health.answered(time.monotonic())  # to a draft of a session that runs
            ready = {uplink.url: uplink.health.ready for uplink in verifiers.uplinks}

    assert metrics.reopens._value.get() == 0
    assert ready == {p.url: p.url != drained for p in processes}


async def test_where_all_verifiers_drain_a_new_answer_is_an_error_that_says_so(
    metrics: EdgeMetrics,
) -> None:
    with running("") as (only,):
        async with using([only.url], metrics) as verifiers:
            await told(only.url, "/drain")
            with pytest.raises(Draining) as raised:
                await Answer(verifiers, metrics).run()

    assert raised.value.retry_after_s == 1


async def test_a_verifier_that_was_restarted_just_now_takes_what_a_draining_one_does_not(
    metrics: EdgeMetrics,
) -> None:
    with running("", "draining") as processes:
        async with using([p.url for p in processes], metrics) as verifiers:
            restarted, drains = verifiers.uplinks
            restarted.health.set_reachable(False)  # as it was at the last probe
            await drains.facts()
            await restarted.facts()
            restarted.health.set_reachable(False)

            assert await Answer(verifiers, metrics, 20).run() == TEXT[:20]


async def test_an_answer_that_is_cut_off_deletes_its_session(metrics: EdgeMetrics) -> None:
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

            assert (await seen(only.url))["cancelled"] == 1


async def test_a_new_answer_that_nobody_takes_is_an_error_at_once(metrics: EdgeMetrics) -> None:
    with running("full") as (only,):
        async with using([only.url], metrics) as verifiers:
            begun = time.monotonic()
            with pytest.raises(Overloaded):
                await Answer(verifiers, metrics).run()

    assert time.monotonic() - begun < 0.5


async def test_a_verifier_that_is_another_one_now_is_not_used(metrics: EdgeMetrics) -> None:
    with running("", "other") as processes:
        async with using([p.url for p in processes], metrics, deadline_s=2.0) as verifiers:
            verifiers.uplinks[0].health.rtt_s = 1e-9

            async def kill() -> None:
                processes[0].kill()

            with pytest.raises(Unavailable):
                await Answer(verifiers, metrics).run(kill)


async def test_a_cut_link_is_resumed_and_nothing_is_opened_again(metrics: EdgeMetrics) -> None:
    with running("") as (only,):
        async with FaultyLink(only.port) as link, using([link.url], metrics) as verifiers:

            async def cut() -> None:
                cuts.append(asyncio.create_task(link.refuse(2.0)))

            cuts: list[asyncio.Task[None]] = []
            assert await Answer(verifiers, metrics).run(cut) == TEXT

    assert metrics.reopens._value.get() == 0
    assert metrics.resumes._value.get() == 1


async def test_where_a_proxy_lets_no_request_resume_the_answer_goes_on_elsewhere(
    metrics: EdgeMetrics,
) -> None:
    with running("limited", "") as processes:
        async with using([p.url for p in processes], metrics) as verifiers:
            verifiers.uplinks[0].health.rtt_s = 1e-9

            assert await Answer(verifiers, metrics, 20).run() == TEXT[:20]

    assert metrics.reopens._value.get() == 1


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


async def test_the_nearest_verifier_that_is_not_busy_is_used(metrics: EdgeMetrics) -> None:
    connections = [Connection(f"http://h{i}", key=None, ca_certificate=None) for i in range(3)]
    far, near, busy = [Uplink(connection, metrics) for connection in connections]
    verifiers = Verifiers([far, near, busy], metrics, 1.0)
    for uplink, rtt_s, load in ((far, 0.09, 0.0), (near, 0.02, 0.1), (busy, 0.01, 1.0)):
        uplink.health.rtt_s, uplink.health.load = rtt_s, load
        uplink.health.set_reachable(True)

    assert verifiers.choose("") is near
    near.health.set_reachable(False)
    assert verifiers.choose("") is far  # it is in use, and not much farther away
    far.identity = "another"
    assert verifiers.choose("") is busy
    assert verifiers.choose("", {busy}) is near
    await verifiers.close()


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
