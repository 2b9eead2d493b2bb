"""The verifier as a process: how it stops, and that it never stays behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import httpx
import pytest
from pyqwest import Client, HTTPTransport, HTTPVersion

from bench.run.services import free_port
from speculation.messages import Fault
from tests.gateway.orphans import is_alive, until_gone
from tests.guards import GUARD_S
from tests.verifier.conftest import ROOT, fake_verifier, http2_client, until
from tests.verifier.down import opened
from tests.verifier.fake_target import HANGS, STALLS, opening


def worker_of(parent: int) -> int:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    (worker,) = map(int, children)
    return worker


@pytest.mark.parametrize(
    ("numbers", "drain_timeout_s"),
    [
        ([signal.SIGTERM], 0.1),
        ([signal.SIGTERM, signal.SIGTERM], 3600.0),
        ([signal.SIGINT], 3600.0),
    ],
    ids=["after the deadline", "a second SIGTERM", "SIGINT"],
)
async def test_what_runs_ends_with_a_fault_and_then_the_process(
    numbers: list[signal.Signals], drain_timeout_s: float
) -> None:
    stalls = opening(prompt=(STALLS,))
    with fake_verifier(drain_timeout_s=drain_timeout_s) as (process, url):
        worker = worker_of(process.pid)
        async with http2_client(url) as client, opened(client, stalls) as stream:
            await stream.opened()
            for number in numbers:
                process.send_signal(number)
                await until(partial(drains, client))
            (fault,) = await stream.rest()
        assert await until_gone(process.pid)

    assert isinstance(fault, Fault)
    assert (fault.code, fault.retryable) == ("shutting_down", True)
    assert process.returncode == 0
    assert not is_alive(worker)


async def drains(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/ready")).status_code == 503
    except httpx.TransportError:
        return True  # the process has ended


async def test_a_target_that_hangs_ends_its_sessions_and_the_process() -> None:
    hangs = opening(prompt=(HANGS,))
    with fake_verifier(pass_timeout_s=0.5, stop_timeout_s=2) as (process, url):
        worker = worker_of(process.pid)
        async with http2_client(url) as client, opened(client, hangs) as stream:
            await stream.opened()
            (fault,) = await stream.rest()
            health = await client.get("/health")
        assert await until_gone(process.pid)

    assert isinstance(fault, Fault)
    assert (fault.code, fault.retryable) == ("target_failed", True)
    assert (health.status_code, health.json()["error"]["code"]) == (503, "failed")
    assert process.returncode == 1
    assert not is_alive(worker)


async def test_the_worker_does_not_outlive_a_killed_parent() -> None:
    with fake_verifier() as (process, url):
        worker = worker_of(process.pid)
        process.kill()
        assert await until_gone(worker)

    async with http2_client(url) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("/health")


@pytest.mark.parametrize(
    ("options", "reason", "status"),
    [
        (["--model", "nope"], "no model 'nope'", 1),
        (["--bogus", "1"], "bogus", 2),
        (["--config", "nowhere.toml"], "nowhere.toml", 2),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(
    options: list[str], reason: str, status: int
) -> None:
    command = [sys.executable, "-m", "verifier", "--port", str(free_port()), *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=GUARD_S)

    assert ended.returncode == status
    assert reason in ended.stderr
    assert len((ended.stdout + ended.stderr).splitlines()) == 1
    assert "Traceback" not in ended.stderr


async def test_without_keys_a_page_of_another_name_reaches_nothing_by_any_version_of_http() -> (
    None
):
    with fake_verifier(keys="") as (_, here):
        there = here.replace("127.0.0.1", "evil.example")
        for version in (HTTPVersion.HTTP1, HTTPVersion.HTTP2):
            transport = HTTPTransport(
                http_version=version,
                dns_overrides={"evil.example": ["127.0.0.1"]},
                enable_otel=False,
            )
            answers = [await Client(transport).get(f"{at}/v1/models") for at in (here, there)]

            assert [answer.status for answer in answers] == [200, 403]
