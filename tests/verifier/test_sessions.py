"""How sessions end when nobody sends, nobody reads, or the target cannot go on."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import httpx
import pytest
from prometheus_client import CollectorRegistry

from gateway.errors import Unavailable
from gateway.metrics import Metrics
from gateway.request_context import RequestOutcome
from gateway.tracing import NO_SPAN
from speculation import wire
from speculation.errors import RemoteProtocolError
from speculation.messages import (
    RUN_CHARACTERS,
    CachedPromptTokens,
    Draft,
    Fault,
    Finish,
    Heartbeat,
    Open,
    Redraw,
)
from speculation.wire import Framed
from tests.verifier.conftest import metrics, until_open
from tests.verifier.down import opened, text_of
from tests.verifier.fake_sessions import ending, rest, running, tenant
from tests.verifier.fake_target import SLOW, STALLS, FakeTarget, opening, said
from verifier.metrics import VerifierMetrics
from verifier.sessions import session as sessions_module
from verifier.sessions.downstream import Downstream
from verifier.sessions.usage import SessionUsage
from verifier.target import Deliver, TargetFull, Unservable

QUICK = 0.05


async def test_a_session_whose_edge_reads_nothing_ends_with_its_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.http.UNREAD_S", QUICK)

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    async with running() as (sessions, _, _m):
        session = await sessions.open(opening(prompt=(STALLS,)), tenant())
        ended = SimpleNamespace(outcome=RequestOutcome(200))
        await Downstream(session, ended)({}, never, never)  # type: ignore[arg-type]

        async with asyncio.timeout(2):
            await session.task
        assert ended.outcome.status == 499
        assert session.ending == Fault("cancelled", "nobody reads the session's stream")


async def test_a_session_that_is_read_too_slowly_ends_after_the_beginning_of_its_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions_module, "MAX_UNREAD_BYTES", 100, raising=False)
    async with running() as (sessions, _, _m):
        session = await sessions.open(opening(max_tokens=100), tenant())
        await asyncio.wait([session.task], timeout=QUICK)
        *messages, last = await rest(session)

    text = text_of(messages)
    assert last == Fault("cancelled", "its stream is not read", retryable=True)
    assert text == [said(opening().prompt, at) for at in range(len(text))]
    assert 0 < sum(len(wire.encode(message)) for message in messages) <= 100


async def test_a_stream_heartbeats_in_each_silence_until_its_edge_reads_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.http.UNREAD_S", QUICK)
    bodies: list[bytes] = []

    async def send(message: dict[str, bytes]) -> None:
        if "body" in message:
            bodies.append(message["body"])
        if len(bodies) == 3:
            await asyncio.Event().wait()

    async def connected() -> None:
        await asyncio.Event().wait()

    async with running() as (sessions, _, _m):
        session = await sessions.open(opening(prompt=(STALLS,)), tenant())
        ended = SimpleNamespace(outcome=RequestOutcome(200))
        async with asyncio.timeout(10):
            await Downstream(session, ended)({}, connected, send)  # type: ignore[arg-type]

    assert bodies[1:] == [wire.encode(Heartbeat())] * 2
    assert ended.outcome.status == 499


async def test_a_session_that_has_begun_to_answer_waits_no_longer_for_drafts_than_it_may() -> (
    None
):
    async with running(first_token_timeout_s=60.0, idle_timeout_s=QUICK) as (sessions, _, _m):
        session = await sessions.open(opening(fill="never", max_tokens=200), tenant())
        await session.push([Framed(Draft(0, 0, 0, (1,)))])

        assert (await ending(session)).code == "idle_timeout"


async def test_what_a_check_finds_is_raised_before_there_is_a_session() -> None:
    class Checking(FakeTarget):
        async def check(self, request: Open, tenant: str | None = None) -> None:
            await asyncio.sleep(0.01)
            raise Unservable("sampling.extras.structured_outputs.json", "no schema")

    async with running(Checking()) as (sessions, target, _):
        with pytest.raises(Unservable, match="no schema"):
            await sessions.open(opening(), tenant())

        assert not target.running


async def test_a_bug_in_a_target_ends_the_session_with_a_fault_and_is_raised() -> None:
    class Broken(FakeTarget):
        async def serve(self, *_: object) -> None:
            raise ZeroDivisionError

    async with running(Broken()) as (sessions, _, _m):
        session = await sessions.open(opening(), tenant())

        assert await ending(session) == Fault("target_failed", "internal error")
        with pytest.raises(ZeroDivisionError):
            await session.task


async def test_what_was_reused_is_sent() -> None:
    class Reusing(FakeTarget):
        async def serve(
            self, session: str, request: Open, deliver: Deliver, tenant: str | None = None
        ) -> None:
            deliver(Framed(CachedPromptTokens(7)))
            await super().serve(session, request, deliver, tenant)

    async with running(Reusing()) as (sessions, _, _m):
        sent = await rest(await sessions.open(opening(), tenant()))

    assert CachedPromptTokens(7) in sent


async def test_a_draft_postpones_the_idle_end() -> None:
    async with running(idle_timeout_s=0.8, first_token_timeout_s=0.8) as (sessions, _, _m):
        session = await sessions.open(opening(fill="never", max_tokens=200), tenant())
        for i in range(4):
            await asyncio.sleep(0.3)  # a busy host makes more of it
            await session.push([Framed(Draft(i, 0, 0, (1,)))])

        assert session.ending is None
        fault = await ending(session)
        assert (fault.code, fault.retryable) == ("idle_timeout", True)


async def test_a_long_prefill_is_not_idle() -> None:
    async with running(idle_timeout_s=QUICK, first_token_timeout_s=0.3) as (sessions, _, _m):
        session = await sessions.open(opening(prompt=(STALLS,)), tenant())
        await asyncio.sleep(4 * QUICK)

        assert session.ending is None
        assert (await ending(session)).code == "idle_timeout"


async def test_a_replacement_must_come_in_time_however_much_of_the_tail_is_asked_for() -> None:
    async with running(replacement_timeout_s=0.2) as (sessions, _, _m):
        session = await sessions.open(opening(judge="separate", fill="never"), tenant())
        await session.push([Framed(Draft(0, 0, 0, (said((4,), 0),), q=(65536,)))])
        (commit,) = await session.read()  # only a session that has begun can be rejected later
        at = len(commit.message.tokens)  # type: ignore[union-attr]
        await session.push([Framed(Draft(0, at, 0, (said((4,), at) + 1,), q=(65536,)))])
        reading = asyncio.create_task(ending(session))
        for draw in range(1, 7):
            await asyncio.sleep(0.06)
            if session.ending is None:
                await session.push([Framed(Redraw(0, at, draw))])

        assert reading.done()
        assert (await reading).code == "replacement_timeout"


async def test_a_dishonest_draft_ends_the_session() -> None:
    async with running() as (sessions, _, metrics):
        session = await sessions.open(opening(fill="never"), tenant())
        with pytest.raises(RemoteProtocolError):
            await session.push([Framed(Draft(0, 0, 0, (1000,)))])

        assert (await ending(session)).code == "protocol_error"
        await asyncio.sleep(0)
        assert metrics.faults.labels("protocol_error")._value.get() == 1


@pytest.mark.parametrize("prompt", [(STALLS,), (SLOW,)])
async def test_a_cancelled_session_frees_its_slot(prompt: tuple[int, ...]) -> None:
    async with running(FakeTarget(slots=1)) as (sessions, target, _):
        session = await sessions.open(opening(prompt=prompt), tenant())
        session.cancel(Fault("cancelled", ""))

        assert (await ending(session)).code == "cancelled"
        assert not target.running
        await rest(await sessions.open(opening(), tenant()))


async def test_a_session_whose_edge_leaves_while_it_is_opened_ends() -> None:
    async with running() as (sessions, _, _m):
        task = asyncio.create_task(sessions.open(opening(prompt=(STALLS, 1)), tenant()))
        await asyncio.sleep(0)
        assert len(sessions.running) == 1
        task.cancel()
        await asyncio.wait([task])
        async with asyncio.timeout(3):
            while sessions.running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_session_that_is_replaced_gives_its_slot_to_the_one_in_its_place() -> None:
    async with running(FakeTarget(slots=1)) as (sessions, _, _m):
        ann = tenant()
        former = await sessions.open(opening(prompt=(STALLS,)), ann)
        session = await sessions.open(opening(replaces=former.name), ann)

        assert (await ending(former)).code == "cancelled"
        assert isinstance((await rest(session))[-1], Finish)


async def test_the_names_of_one_run_begin_alike_and_those_of_another_do_not() -> None:
    async with running() as (one, _, _m), running() as (other, _, _m):
        names = [(await each.open(opening(), tenant())).name for each in (one, one, other)]

    runs = [name[:RUN_CHARACTERS] for name in names]
    assert runs[0] == runs[1] != runs[2]
    assert len(set(names)) == 3


async def test_a_target_without_a_slot_refuses_at_once_and_leaves_nothing() -> None:
    async with running(FakeTarget(slots=1)) as (sessions, _, metrics):
        await sessions.open(opening(prompt=(STALLS,)), tenant())
        with pytest.raises(TargetFull):
            await sessions.open(opening(), tenant())
        await asyncio.sleep(0)

        assert metrics.open._value.get() == 1


async def test_nothing_opens_while_the_target_loads() -> None:
    async with running(FakeTarget(starts=False)) as (sessions, _, _m):
        with pytest.raises(Unavailable, match="loading"):
            await sessions.open(opening(), tenant())


# What is counted of sessions: the same names as for requests without an edge.


def test_tokens_are_counted_and_timed_at_commits() -> None:
    registry = CollectorRegistry()
    context = SessionUsage(Metrics(registry).of("m"), NO_SPAN, opened=10.0)

    context.committed(1, now=10.5)
    context.committed(4, now=10.9)
    context.finished(now=11.0)

    def value(name: str) -> float | None:
        return registry.get_sample_value(f"picospec:{name}", {"model_name": "m"})

    assert value("generation_tokens_total") == 5
    assert value("time_to_first_token_seconds_count") == 1
    assert value("time_to_first_token_seconds_sum") == pytest.approx(0.5)
    assert value("inter_token_latency_seconds_count") == 1
    assert value("inter_token_latency_seconds_sum") == pytest.approx(0.1)
    assert value("e2e_request_latency_seconds_sum") == pytest.approx(1.0)


@pytest.mark.system
async def test_a_sessions_tokens_and_times_are_among_the_verifiers_metrics(
    client: httpx.AsyncClient,
) -> None:
    before = await metrics(client)
    async with opened(client, opening(prompt=(SLOW, 5, 6), max_tokens=4)) as stream:
        await stream.rest()
    await until_open(client, 0)
    after = await metrics(client)

    def more(name: str) -> float:
        series = f'picospec:{name}{{model_name="fake"}}'
        return after[series] - before.get(series, 0.0)

    assert more("prompt_tokens_total") == 3
    assert more("generation_tokens_total") == 4
    assert more("time_to_first_token_seconds_count") == 1
    assert more("inter_token_latency_seconds_count") == 3
    assert 0.25 < more("inter_token_latency_seconds_sum") < 3.0  # three passes of 0.1 s
    assert more("e2e_request_latency_seconds_count") == 1


def test_the_passes_of_a_gpu_are_told_apart() -> None:
    registry = CollectorRegistry()
    counted = VerifierMetrics(registry)

    for seconds in (0.0025, 0.0035, 0.0055, 0.007):
        counted.passed(1, seconds)

    bounds = ("0.002", "0.003", "0.004", "0.005", "0.006", "0.008")
    name = "picospec:pass_seconds_bucket"
    found = [registry.get_sample_value(name, {"le": bound}) for bound in bounds]
    assert found == [0, 1, 2, 2, 3, 4]


def test_kv_use_and_queue_are_looked_up_when_they_are_asked_for() -> None:
    registry = CollectorRegistry()
    waiting: list[str] = []
    counted, labels = VerifierMetrics(registry), {"model_name": "m"}
    counted.follow("m", lambda: 0.25 * len(waiting), lambda: len(waiting))

    waiting += ["a", "b"]

    assert registry.get_sample_value("picospec:num_requests_waiting", labels) == 2
    assert registry.get_sample_value("picospec:kv_cache_usage_perc", labels) == 0.5
