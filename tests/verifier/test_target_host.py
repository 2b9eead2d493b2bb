"""A target's life: what the service does when it is lost."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from picospec.gateway.drain import Drain
from picospec.gateway.errors import Unavailable
from picospec.models.store import Found
from picospec.speculation.messages import Limits
from picospec.verifier import target_host as host
from picospec.verifier.llama_target.target import LlamaTarget
from picospec.verifier.metrics import VerifierMetrics
from picospec.verifier.settings import LlamaSettings
from picospec.verifier.target_host import Host
from tests.verifier.fake_target import FakeTarget


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


async def test_a_pass_that_does_not_end_ends_the_service() -> None:
    target, drain = FakeTarget(), Drain()
    served = Host(target, drain, pass_timeout_s=0.05)
    with capture_logs() as logs:
        async with asyncio.timeout(5.0), served.running():
            await asyncio.sleep(0.2)
            assert not drain.begun  # a heart that beats is no reason

            target.hangs = True

            await drain.over.wait()
            with pytest.raises(Unavailable, match="failed"):
                served.check()
            target.hangs = False  # or it would not stop

    failed = [entry for entry in logs if entry["log_level"] == "error"]
    assert [(entry["event"], entry["error"]) for entry in failed] == [
        ("the target is lost", "no pass has ended for 0.05 s (pass_timeout_s)")
    ]


async def test_an_engine_that_raises_for_a_heartbeat_ends_the_service() -> None:
    class Dead(FakeTarget):
        async def heartbeat(self) -> None:
            raise RuntimeError("the engine is dead")

    drain = Drain()
    async with asyncio.timeout(5.0), Host(Dead(), drain).running():
        await drain.over.wait()


async def test_a_target_that_does_not_load_ends_the_service() -> None:
    drain = Drain()
    with capture_logs() as logs:
        async with (
            asyncio.timeout(5.0),
            Host(FakeTarget(starts=False), drain, load_timeout_s=0.05).running(),
        ):
            await drain.over.wait()

    assert logs[0]["event"] == "the target cannot start"
    assert logs[0]["error"] == "it was not loaded within 0.05 s"


async def test_the_embedded_targets_heart_beats_between_two_passes(tmp_path: Path) -> None:
    metrics = VerifierMetrics(CollectorRegistry())
    target = LlamaTarget(lambda: Found("m", tmp_path), LlamaSettings(), Limits(), metrics)
    ends = threading.Event()
    target._thread.submit(ends.wait)  # a pass

    beat = asyncio.create_task(target.heartbeat())
    done, _ = await asyncio.wait([beat], timeout=0.1)
    ends.set()

    assert not done
    async with asyncio.timeout(5.0):
        await beat
    target._thread.shutdown()
