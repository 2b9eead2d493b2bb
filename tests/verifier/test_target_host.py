"""A target's life: what the service does when it is lost."""

from __future__ import annotations

import asyncio

import pytest

from gateway.drain import Drain
from gateway.errors import Unavailable
from tests.verifier.fake_target import FakeTarget
from verifier import target_host as host
from verifier.target_host import Host


async def test_a_target_that_is_lost_ends_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "CHECK_S", 0.01)
    target, drain = FakeTarget(), Drain()
    served = Host(target, drain)
    async with served.running():
        await asyncio.sleep(0.03)
        assert served.ready() is target
        served.check()
        assert not drain.begun

        target.alive = False

        async with asyncio.timeout(5.0):
            await drain.over.wait()
        with pytest.raises(Unavailable, match="failed"):
            served.ready()
        with pytest.raises(Unavailable, match="failed"):
            served.check()
    assert target.stopped
    assert served.state == "failed"
