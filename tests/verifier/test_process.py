"""The verifier as a process: how it stops, and that it never stays behind."""

from __future__ import annotations

import asyncio
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
from tests.guards import GUARD_S
from tests.verifier.conftest import (
    ROOT,
    fake_command,
    fake_verifier,
    http2_client,
    running,
    until,
)
from tests.verifier.down import opened
from tests.verifier.fake_target import HANGS, STALLS, opening


def worker_of(parent: int) -> int:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    (worker,) = map(int, children)
    return worker


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def gone(pid: int) -> None:
    async with asyncio.timeout(GUARD_S):
        while is_running(pid):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)


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
        await gone(process.pid)

    assert isinstance(fault, Fault)
    assert (fault.code, fault.retryable) == ("shutting_down", True)
    assert process.returncode == 0
    assert not is_running(worker)


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
        await gone(process.pid)

    assert isinstance(fault, Fault)
    assert (fault.code, fault.retryable) == ("target_failed", True)
    assert (health.status_code, health.json()["error"]["code"]) == (503, "failed")
    assert process.returncode == 1
    assert not is_running(worker)


async def test_the_worker_does_not_outlive_a_killed_parent() -> None:
    with fake_verifier() as (process, url):
        worker = worker_of(process.pid)
        process.kill()
        await gone(worker)

    async with http2_client(url) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("/health")


async def test_while_the_target_loads_the_process_is_healthy_and_not_ready() -> None:
    port = free_port()
    with running(fake_command(port, model="")) as process:
        async with http2_client(f"http://127.0.0.1:{port}") as client:
            health = await _get(client, "/health")
            answers = [await _get(client, path) for path in ("/ready", "/v1/model-facts")]

    assert process.returncode == 0
    assert (health.status_code, health.json()) == (200, {"status": "ok", "state": "loading"})
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "loading")


async def _get(client: httpx.AsyncClient, path: str) -> httpx.Response:
    async with asyncio.timeout(GUARD_S):
        while True:
            try:
                return await client.get(path)
            except httpx.TransportError:
                await asyncio.sleep(0.05)


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
