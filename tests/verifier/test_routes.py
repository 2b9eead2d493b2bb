"""The speculation routes through the real server, over HTTP/2."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import httpx
import msgspec
import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.drain import Drain
from gateway.request_body import RequestBody
from gateway.request_context import RequestOutcome
from gateway.tenant_limits import Tenant
from gateway.tracing import NO_SPAN
from speculation import wire
from speculation.answer_cache import SHARED, Owner
from speculation.messages import (
    STREAM_HEARTBEAT_S,
    Commit,
    Draft,
    Fault,
    Finish,
    Message,
    Opened,
    Pushed,
    Recovered,
    Redraw,
    Reject,
    Sampling,
    Totals,
)
from speculation.wire import Framed
from tests.guards import GUARD_S
from tests.verifier.conftest import http2_client, metrics, sessions_open, until_open
from tests.verifier.down import opened, push, text_of
from tests.verifier.fake_sessions import tenant
from tests.verifier.fake_target import FACTS, FAILS, STALLS, STREAMS, FakeTarget, opening, said
from verifier.host import Host
from verifier.metrics import VerifierMetrics
from verifier.owners import Owners
from verifier.routes import Routes
from verifier.sessions.admission import Sessions
from verifier.sessions.session import Session
from verifier.sessions.timeouts import Timeouts
from verifier.sessions.usage import SessionUsage
from verifier.settings import SessionSettings
from verifier.vllm_target.core.slot import OutgoingFrame
from verifier.vllm_target.packing import packed, unpacked
from verifier.vllm_target.serving.target import VllmTarget


def truth(count: int, first: int = STREAMS) -> list[int]:
    return [said((first,), position) for position in range(count)]


async def test_a_session_streams_its_text_and_its_finish(client: httpx.AsyncClient) -> None:
    async with opened(client, opening()) as stream:
        await stream.opened()
        messages = await stream.rest()

    assert stream.response.headers["content-type"] == "application/vnd.picospec"
    assert text_of(messages) == truth(8)
    assert isinstance(messages[-1], Finish)
    assert messages[-1].reason == "length"
    assert await sessions_open(client) == 0


async def test_a_stream_opens_before_the_prompt_is_read_and_heartbeats_meanwhile(
    client: httpx.AsyncClient,
) -> None:
    begun = time.monotonic()
    async with asyncio.timeout(GUARD_S), opened(client, opening(prompt=(STALLS,))) as stream:
        await stream.opened()
        text = asyncio.create_task(stream.next())
        while stream.heartbeats < 3:  # noqa: ASYNC110 - another process sends them
            await asyncio.sleep(0.01)
        heartbeats, lasted_s = stream.heartbeats, time.monotonic() - begun
        is_read = text.done()
        text.cancel()

    assert not is_read
    assert heartbeats <= lasted_s / STREAM_HEARTBEAT_S


async def test_ready_says_how_busy_the_verifier_is(client: httpx.AsyncClient) -> None:
    async with opened(client, opening(prompt=(STALLS,))) as stream:
        await stream.opened()
        ready = await client.get("/ready")
        health = await client.get("/health")

    assert ready.json() == {"status": "ok", "model": "fake", "load": round(1 / 64, 3)}
    assert health.json() == {"status": "ok", "state": "ready"}


async def test_drafts_are_judged_and_are_no_requests_of_their_own(
    client: httpx.AsyncClient,
) -> None:
    draft, before = Draft(0, 0, 0, tuple(truth(3))), await metrics(client)
    async with opened(client, opening(fill="never")) as stream:
        session = await stream.opened()
        answers = [await push(client, session, draft) for _ in range(5)]
        commit = await stream.next()
    await until_open(client, 0)
    late = await push(client, session, draft)
    after = await metrics(client)

    def more(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    assert isinstance(commit, Commit)
    assert (commit.accepted, list(commit.tokens)) == (3, truth(4))
    assert [answer.status_code for answer in (*answers, late)] == [204] * 5 + [404]
    assert more('picospec:requests_total{route="other",status="204"}') == 0
    assert more('picospec:requests_total{route="other",status="404"}') == 0
    assert more('picospec:failed_draft_messages_total{status="404"}') == 1


async def test_a_replacement_is_drawn_by_the_edge(client: httpx.AsyncClient) -> None:
    async with opened(client, opening(judge="separate", fill="never")) as stream:
        session = await stream.opened()
        wrong = truth(1)[0] + 1
        await push(client, session, Draft(0, 0, 0, (wrong,), q=(65536,)))
        refuse = await stream.next()
        await push(client, session, Redraw(0, 0, 1))
        again = await stream.next()
        await push(client, session, Recovered(1, 0, truth(1)[0]))
        commit = await stream.next()

    assert isinstance(refuse, Reject)
    assert isinstance(again, Reject)
    assert refuse.head == ((truth(1)[0], 1.0),)
    assert isinstance(commit, Commit)
    assert (commit.start, list(commit.tokens)) == (0, truth(1))


async def test_a_failing_target_is_a_fault_that_may_be_retried(
    client: httpx.AsyncClient,
) -> None:
    async with opened(client, opening(prompt=(FAILS,))) as stream:
        await stream.opened()
        messages = await stream.rest()

    assert text_of(messages) == truth(3, FAILS)
    assert messages[-1] == Fault("target_failed", "it broke", retryable=True)
    await until_open(client, 0)


async def test_a_client_gone_before_the_first_byte_leaves_no_session_behind(
    client: httpx.AsyncClient, server: str
) -> None:
    async with http2_client(server) as other:
        waiting = asyncio.create_task(_read_forever(other))
        await until_open(client, 1)
        waiting.cancel()
        await asyncio.wait([waiting])

    await until_open(client, 0)


async def _read_forever(client: httpx.AsyncClient) -> None:
    async with opened(client, opening(prompt=(STALLS,))) as stream:
        await stream.rest()


async def test_the_plain_face_says_the_same_text(client: httpx.AsyncClient) -> None:
    request = {"model": "fake", "prompt": [STREAMS, 5, 6], "max_tokens": 8, "logprobs": None}

    answer = await client.post("/v1/completions", json=request)

    text = "".join(chr(token + 32) for token in truth(8))
    assert answer.json()["choices"][0]["text"] == text
    assert await sessions_open(client) == 0


async def test_a_key_makes_the_verifier_forget_its_answers_or_those_of_one_of_its_users() -> (
    None
):
    target = FakeTarget()
    routes = Routes(Mock(ready=lambda: target), Mock())
    state = {"context": Mock(tenant=Mock())}
    state["context"].tenant.identity = "edge"

    for query in (b"", b"cache_salt=alice"):
        scope = {"type": "http", "query_string": query, "state": state}
        assert (await routes.forget(Request(scope))).status_code == 204

    salt = {"cache_salt": msgspec.Raw(b'"alice"')}
    asked = opening(sampling=Sampling(extras=salt), ngram_drafts=True)
    assert target.forgotten == [Owner("edge"), target.owners.of_answers("edge", asked)]


async def test_where_prefixes_are_shared_so_are_answers_but_none_of_nobody() -> None:
    target = FakeTarget()
    assert target.owners.of_answers(None, opening()) is None

    target.owners = Owners(share_prefixes=True)

    assert target.owners.of_answers("edge", opening()) == SHARED


async def test_the_answers_that_are_kept_are_forgotten_over_http(
    client: httpx.AsyncClient, server: str
) -> None:
    assert (await client.delete("/v1/picospec/pool")).status_code == 204
    async with http2_client(server, "wrong") as stranger:
        assert (await stranger.delete("/v1/picospec/pool")).status_code == 401


# Between the edge and vLLM's core a message is encoded once: the service passes bytes on.

DRAFTS: tuple[Pushed, ...] = (Draft(0, 0, 0, (1, 2)), Draft(0, 2, 2, (3,)))
REPLIES: tuple[Message, ...] = (Commit(0, 0, (1, 2)), Finish("length", Totals(passes=1)))


Take = Callable[[OutgoingFrame], object]


class FakeEngine:
    """What VllmTarget needs of its engine: keeps what is pushed, and sends frames."""

    def __init__(self, frames: list[bytes]) -> None:
        self._frames = frames
        self.pushed: list[bytes] = []
        self.max_sessions, self.drawn_by_vllm = 1, False

    async def generate(
        self, session: str, text: object, wanted: object, take: Take, *_: object
    ) -> None:
        for frame in self._frames:
            take(OutgoingFrame(frame))
            await asyncio.sleep(0)  # its reader goes on

    async def push(self, session: str, frame: bytes) -> None:
        self.pushed.append(frame)


def vllm_target(engine: FakeEngine) -> VllmTarget:
    registry = CollectorRegistry()
    metrics = VerifierMetrics(registry)
    target = VllmTarget("m", engine, FACTS.limits, metrics)  # type: ignore[arg-type]
    target._facts = FACTS
    return target


def session_metrics() -> VerifierMetrics:
    registry = CollectorRegistry()
    return VerifierMetrics(registry)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    """Every message that is encoded from now on."""
    found: list[Message] = []
    encode = wire.encode

    def counting(message: Message) -> bytes:
        found.append(message)
        return encode(message)

    monkeypatch.setattr(wire, "encode", counting)
    return found


BODY = b"".join(map(wire.encode, DRAFTS))
FRAMES = [wire.encode(message) for message in REPLIES]
PACKED = [packed(message) for message in REPLIES]


async def test_drafts_reach_the_target_as_the_bytes_that_the_edge_sent(
    encoded: list[Message],
) -> None:
    target = FakeTarget()
    host = Host(target, Drain())
    sessions = Sessions(host, SessionSettings(), session_metrics())
    app = Starlette(routes=Routes(host, sessions).all())
    async with host.running():
        await asyncio.sleep(0)
        ann = tenant()
        session = await sessions.open(opening(fill="never", max_tokens=100), ann)
        transport = httpx.ASGITransport(app=partial(_of_tenant, ann, app))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.post(f"/v1/speculate/{session.name}/drafts", content=BODY)
        await sessions.end_all()

    assert answer.status_code == 204
    assert b"".join(framed.frame for framed in target.pushed) == BODY
    assert not [message for message in encoded if isinstance(message, Pushed)]


async def _of_tenant(
    owner: Tenant, app: ASGIApp, scope: Scope, receive: Receive, send: Send
) -> None:
    state = {
        "context": SimpleNamespace(tenant=owner, outcome=RequestOutcome()),
        "body": RequestBody(scope, receive, 1000),
    }
    await app({**scope, "state": state}, receive, send)


async def test_drafts_reach_the_core_as_they_came(encoded: list[Message]) -> None:
    engine = FakeEngine(PACKED)
    target = vllm_target(engine)
    async with aclosing(target.replies("s", opening())) as replies:
        await anext(replies)
        encoded.clear()
        for framed in wire.Decoder().frames(BODY):
            await target.push("s", framed)  # type: ignore[arg-type]

    assert [unpacked(each) for each in engine.pushed] == list(DRAFTS)
    assert encoded == []


async def test_what_the_core_sent_is_encoded_once_for_the_stream(
    encoded: list[Message],
) -> None:
    target = vllm_target(FakeEngine(PACKED))
    opened, timeouts = Opened("s", FACTS.limits), Timeouts(SessionSettings(), 0.0, 0.0)
    context = SessionUsage(session_metrics().gateway.of("m"), NO_SPAN, 0.0)
    session = Session(opened, opening(), target, timeouts, context, tenant())
    await session.task

    assert [entry.frame for entry in await session.read()] == FRAMES
    assert encoded == list(REPLIES)


def test_a_frame_is_encoded_when_it_is_first_needed_and_never_again(
    encoded: list[Message],
) -> None:
    framed = Framed(DRAFTS[0])
    assert encoded == []

    frames = {framed.frame for _ in range(3)}

    assert frames == {BODY[: len(framed.frame)]}
    assert encoded == [DRAFTS[0]]
