"""Sessions on the fake target in this process, a tenant for them, and what they send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from gateway.drain import Drain
from gateway.keys import KeyLimits
from gateway.tenant_limits import Tenant, TenantMetrics
from speculation.messages import Fault, Message
from tests.verifier.fake_target import FakeTarget
from verifier.host import Host
from verifier.metrics import VerifierMetrics
from verifier.sessions.admission import Sessions
from verifier.sessions.session import Session
from verifier.settings import SessionSettings


def tenant(**limits: int) -> Tenant:
    return Tenant("ann", KeyLimits(**limits), TenantMetrics(CollectorRegistry()))


@asynccontextmanager
async def running(
    target: FakeTarget | None = None, **settings: float
) -> AsyncIterator[tuple[Sessions, FakeTarget, VerifierMetrics]]:
    """Yield the sessions of a host; at the end none is left, and its target has stopped."""
    target = target or FakeTarget()
    metrics = VerifierMetrics(CollectorRegistry())
    host = Host(target, Drain())
    sessions = Sessions(host, SessionSettings(**settings), metrics)  # type: ignore[arg-type]
    async with host.running():
        await asyncio.sleep(0)
        yield sessions, target, metrics
        await sessions.end_all()
        await asyncio.sleep(0)
        assert not target.running
        assert metrics.open._value.get() == 0
    assert target.stopped


async def rest(session: Session) -> list[Message]:
    messages: list[Message] = []
    while news := await session.read():
        messages.extend(entry.message for entry in news)
    return messages


async def ending(session: Session) -> Fault:
    last = (await rest(session))[-1]
    assert isinstance(last, Fault)
    return last
