"""Between the edge and vLLM's core a message is encoded once: the service passes bytes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from types import SimpleNamespace

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from picospec.gateway.drain import Drain
from picospec.gateway.http import RequestBody
from picospec.gateway.tenants import Tenant
from picospec.gateway.tracing import NO_SPAN
from picospec.speculation import wire
from picospec.speculation.messages import (
    Commit,
    Draft,
    Finish,
    Message,
    Opened,
    Pushed,
    Totals,
)
from picospec.speculation.wire import Framed
from picospec.verifier.metrics import VerifierMetrics
from picospec.verifier.routes import Routes
from picospec.verifier.sessions.registry import Sessions
from picospec.verifier.sessions.session import Session, SessionAccount, Timeouts
from picospec.verifier.settings import SessionSettings
from picospec.verifier.target_host import Host
from picospec.verifier.vllm_target.core.slot import OutgoingFrame
from picospec.verifier.vllm_target.serving.target import VllmTarget
from tests.verifier.fake_target import FACTS, FakeTarget, opening
from tests.verifier.test_sessions import tenant

DRAFTS: tuple[Pushed, ...] = (Draft(0, 0, 0, (1, 2)), Draft(0, 2, 2, (3,)))
REPLIES: tuple[Message, ...] = (Commit(0, 0, (1, 2)), Finish("length", Totals(passes=1)))


class FakeEngine:
    """What VllmTarget needs of its engine: keeps what is pushed, and sends frames."""

    def __init__(self, frames: list[bytes]) -> None:
        self._frames = frames
        self.pushed: list[bytes] = []
        self.max_sessions, self.drawn_by_vllm = 1, False

    async def generate(self, *_: object) -> AsyncGenerator[OutgoingFrame]:
        for frame in self._frames:
            yield OutgoingFrame(frame)

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
        "account": SimpleNamespace(tenant=owner),
        "body": RequestBody(scope, receive, 1000),
    }
    await app({**scope, "state": state}, receive, send)


async def test_drafts_reach_the_core_as_they_came(encoded: list[Message]) -> None:
    engine = FakeEngine(FRAMES)
    target = vllm_target(engine)
    async with aclosing(target.serve("s", opening())) as replies:
        await anext(replies)
        encoded.clear()
        for framed in wire.Decoder().frames(BODY):
            await target.push("s", framed)  # type: ignore[arg-type]

    assert b"".join(engine.pushed) == BODY
    assert encoded == []


async def test_what_the_core_encoded_reaches_the_stream_unchanged(
    encoded: list[Message],
) -> None:
    target = vllm_target(FakeEngine(FRAMES))
    opened, timeouts = Opened("s", FACTS.limits), Timeouts(SessionSettings(), 0.0, 0.0)
    account = SessionAccount(session_metrics().gateway, NO_SPAN, 0.0)
    session = Session(opened, opening(), target, timeouts, account, tenant())
    await session.task

    assert [entry.frame for entry in await session.read()] == FRAMES
    assert encoded == []


def test_a_frame_is_encoded_when_it_is_first_needed_and_never_again(
    encoded: list[Message],
) -> None:
    framed = Framed(DRAFTS[0])
    assert encoded == []

    frames = {framed.frame for _ in range(3)}

    assert frames == {BODY[: len(framed.frame)]}
    assert encoded == [DRAFTS[0]]
