"""Who may have a session, how it ends, and what is counted of it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from gateway import http
from gateway.errors import RateLimited
from gateway.keys import KeyLimits
from gateway.metrics import Metrics
from gateway.request_context import RequestOutcome
from gateway.tenant_limits import Tenant, TenantMetrics
from gateway.tracing import NO_SPAN
from speculation import wire
from speculation.messages import (
    RUN_CHARACTERS,
    STREAM_HEARTBEAT_S,
    Draft,
    Fault,
    Finish,
    Heartbeat,
    Redraw,
)
from speculation.wire import Framed
from tests.verifier.down import text_of
from tests.verifier.fake_sessions import ending, rest, running, tenant
from tests.verifier.fake_target import FAILS, SLOW, STALLS, FakeTarget, opening, said
from verifier.metrics import VerifierMetrics
from verifier.sessions import session as sessions_module
from verifier.sessions.downstream import Downstream
from verifier.sessions.usage import SessionUsage
from verifier.target import TargetFull, UnknownSession, Unservable


@pytest.mark.parametrize("read", [0, 3])
async def test_a_stream_heartbeats_in_each_silence_until_its_edge_reads_no_more(
    read: int,
) -> None:
    bodies: list[bytes] = []

    async def send(message: dict[str, bytes]) -> None:
        if "body" in message:
            bodies.append(message["body"])
        if len(bodies) == read:
            await asyncio.Event().wait()

    async def connected() -> None:
        await asyncio.Event().wait()

    began_s = asyncio.get_running_loop().time()
    async with running() as (sessions, _, _m):
        session = await sessions.open(opening(prompt=(STALLS,)), tenant())
        ended = SimpleNamespace(outcome=RequestOutcome(200))
        await Downstream(session, ended)({}, connected, send)  # type: ignore[arg-type]
        await asyncio.wait([session.task])

    lasted_s = asyncio.get_running_loop().time() - began_s
    silences = len(bodies[1:])
    assert bodies[1:] == [wire.encode(Heartbeat())] * max(0, read - 1)
    assert lasted_s == pytest.approx(silences * STREAM_HEARTBEAT_S + http.UNREAD_S, abs=1.0)
    assert ended.outcome.status == 499
    assert session.ending == Fault("cancelled", "nobody reads the session's stream")


async def test_a_session_that_is_read_too_slowly_ends_after_the_beginning_of_its_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions_module, "MAX_UNREAD_BYTES", 100)
    async with running() as (sessions, _, _m):
        session = await sessions.open(opening(max_tokens=100), tenant())
        await asyncio.wait([session.task])
        *messages, last = await rest(session)

    text = text_of(messages)
    assert last == Fault("cancelled", "its stream is not read", retryable=True)
    assert text == [said(opening().prompt, at) for at in range(len(text))]
    assert 0 < sum(len(wire.encode(message)) for message in messages) <= 100


IDLE = "no draft came and nothing was said for"
OLD = "an answer may take at most"


@pytest.mark.parametrize(
    ("fields", "drafts_s", "fault", "ends_s"),
    [
        pytest.param(
            {"prompt": (STALLS,)}, [], Fault("idle_timeout", f"{IDLE} 600 s", True), 600,
            id="a long prefill is not idle",
        ),
        pytest.param(
            {"fill": "never"}, [0], Fault("idle_timeout", f"{IDLE} 60 s", True), 60,
            id="an answer has begun",
        ),
        pytest.param(
            {"fill": "never"}, [0, 50, 100], Fault("idle_timeout", f"{IDLE} 60 s", True), 160,
            id="a draft postpones the end",
        ),
        pytest.param(
            {"prompt": (SLOW,), "max_tokens": 200}, [], Fault("max_age", f"{OLD} 10 s"), 10,
            id="it is too old, and still generates",
        ),
    ],
)  # fmt: skip
async def test_a_session_ends_when_its_time_is_over(
    fields: dict[str, object], drafts_s: list[float], fault: Fault, ends_s: float
) -> None:
    loop, max_age_s = asyncio.get_running_loop(), 10.0 if ends_s == 10 else 7200.0
    async with running(max_age_s=max_age_s) as (sessions, _, _m):
        session = await sessions.open(opening(**fields), tenant())
        for number, at_s in enumerate(drafts_s):
            await asyncio.sleep(at_s - loop.time())
            await session.push([Framed(Draft(number, 0, 0, (1,)))])
        *messages, last = await rest(session)

    assert last == fault
    assert loop.time() == pytest.approx(ends_s, abs=0.1)
    assert bool(text_of(messages)) == (ends_s != 600)


async def test_a_replacement_must_come_in_time_however_much_of_the_tail_is_asked_for() -> None:
    async with running() as (sessions, _, _m):
        session = await sessions.open(opening(judge="separate", fill="never"), tenant())
        await session.push([Framed(Draft(0, 0, 0, (said((4,), 0),), q=(65536,)))])
        (commit,) = await session.read()  # only a session that has begun can be rejected later
        at = len(commit.message.tokens)  # type: ignore[union-attr]
        await session.push([Framed(Draft(0, at, 0, (said((4,), at) + 1,), q=(65536,)))])
        reading = asyncio.create_task(ending(session))
        for draw in range(1, 7):
            await asyncio.sleep(6.0)
            if session.ending is None:
                await session.push([Framed(Redraw(0, at, draw))])

        assert reading.done()
        assert (await reading).code == "replacement_timeout"


async def test_a_target_that_fails_ends_its_session_and_the_edge_may_try_again() -> None:
    async with running() as (sessions, _, _m):
        session = await sessions.open(opening(prompt=(FAILS,)), tenant())
        *messages, last = await rest(session)

    assert text_of(messages) == [said((FAILS,), at) for at in range(3)]
    assert last == Fault("target_failed", "it broke", retryable=True)


async def test_a_bug_in_a_target_ends_the_session_with_a_fault_and_is_raised() -> None:
    class Broken(FakeTarget):
        async def serve(self, *_: object) -> None:
            raise ZeroDivisionError

    async with running(Broken()) as (sessions, _, _m):
        session = await sessions.open(opening(), tenant())

        assert await ending(session) == Fault("target_failed", "internal error")
        with pytest.raises(ZeroDivisionError):
            await session.task


async def test_a_session_whose_edge_leaves_while_it_is_opened_ends() -> None:
    async with running() as (sessions, _, _m):
        task = asyncio.create_task(sessions.open(opening(prompt=(STALLS, 1)), tenant()))
        await asyncio.sleep(0)
        (session,) = sessions.running.values()
        task.cancel()
        await asyncio.wait([task, session.task])
        await asyncio.sleep(0)
        assert not sessions.running


@pytest.mark.parametrize("prompt", [(STALLS,), (SLOW,)], ids=["in its prefill", "in a pass"])
async def test_a_session_that_is_replaced_gives_its_slot_to_the_one_in_its_place(
    prompt: tuple[int, ...],
) -> None:
    async with running(FakeTarget(slots=1)) as (sessions, _, _m):
        ann = tenant()
        former = await sessions.open(opening(prompt=prompt), ann)
        session = await sessions.open(opening(replaces=former.name), ann)

        assert (await ending(former)).code == "cancelled"
        assert isinstance((await rest(session))[-1], Finish)


async def test_the_names_of_one_run_begin_alike_and_those_of_another_do_not() -> None:
    async with running() as (one, _, _m), running() as (other, _, _m):
        names = [(await each.open(opening(), tenant())).name for each in (one, one, other)]

    runs = [name[:RUN_CHARACTERS] for name in names]
    assert runs[0] == runs[1] != runs[2]
    assert len(set(names)) == 3


@pytest.mark.parametrize(("slots", "most"), [(1, 64), (4, 1)], ids=["slots", "sessions"])
async def test_a_session_too_many_is_refused_at_once_and_leaves_nothing(
    slots: int, most: int
) -> None:
    async with running(FakeTarget(slots=slots), max_sessions=most) as (sessions, _, metrics):
        await sessions.open(opening(prompt=(STALLS,)), tenant())
        with pytest.raises(TargetFull):
            await sessions.open(opening(), tenant())
        await asyncio.sleep(0)

        assert metrics.open._value.get() == metrics.refused._value.get() == 1


# A session belongs to the key that opened it, and counts among its answers.


async def test_only_its_own_tenant_finds_and_replaces_a_session() -> None:
    ann, ben = tenant(), tenant()
    async with running() as (sessions, _, _m):
        session = await sessions.open(opening(prompt=(STALLS,)), ann)

        with pytest.raises(UnknownSession, match="there is no session"):
            sessions.find(session.name, ben)
        await sessions.open(opening(prompt=(STALLS,), replaces=session.name), ben)
        assert sessions.find(session.name, ann) is session
        assert session.ending is None


async def test_a_session_counts_among_its_tenants_answers_until_it_ends() -> None:
    ann, ben = tenant(sessions=2), tenant(sessions=2)
    async with running() as (sessions, _, _m):
        first = await sessions.open(opening(prompt=(STALLS,)), ann)
        ann.begin(0.0)  # a plain answer

        with pytest.raises(RateLimited, match="2 answers at once"):
            await sessions.open(opening(), ann)
        await sessions.open(opening(prompt=(STALLS,)), ben)
        first.cancel(Fault("cancelled", ""))
        await rest(first)
        await asyncio.sleep(0)
        await rest(await sessions.open(opening(), ann))


async def test_a_session_over_a_limit_is_no_work_that_a_drain_waits_for() -> None:
    ann = tenant(sessions=1)
    async with running() as (sessions, _, _m):
        ann.begin(0.0)  # a plain answer
        with pytest.raises(RateLimited):
            await sessions.open(opening(), ann)

        drain = sessions._host.drain
        drain.begin(60)

        assert drain.over.is_set()


async def test_a_tenant_has_one_answer_at_a_time_checked_and_none_when_the_check_fails() -> (
    None
):
    checking, checked = asyncio.Event(), asyncio.Event()

    async def check(*_: object) -> None:
        checking.set()
        await checked.wait()
        raise Unservable("sampling.extras.structured_outputs.json", "no schema")

    ann, target = tenant(sessions=1), FakeTarget()
    target.on_check = check
    async with running(target) as (sessions, _, _m):
        first = asyncio.create_task(sessions.open(opening(), ann))
        await checking.wait()
        with pytest.raises(RateLimited, match="1 answers at once"):
            await sessions.open(opening(), ann)
        checked.set()
        with pytest.raises(Unservable, match="no schema"):
            await first

        ann.check_room(0.0)
        assert not target.opened


async def test_the_tokens_of_a_session_are_its_tenants_and_those_it_began_with_are_not() -> (
    None
):
    registry = CollectorRegistry()
    ann = Tenant("ann", KeyLimits(), TenantMetrics(registry))
    known = tuple(said((4, 5, 6), i) for i in range(3))
    async with running() as (sessions, _, _m):
        session = await sessions.open(opening(committed=known), ann)
        last = (await rest(session))[-1]
        await asyncio.sleep(0)

    assert isinstance(last, Finish)
    assert registry.get_sample_value("picospec:tenant_tokens_total", {"tenant": "ann"}) == 5


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
