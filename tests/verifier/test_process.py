"""The verifier as a process: how it stops, and that it never stays behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from speculation.protocol.messages import Fault
from tests.verifier.conftest import (
    ROOT,
    fake_command,
    free_port,
    http2_client,
    running,
    serving,
)
from tests.verifier.down import opened
from tests.verifier.fake_target import STALLS, opening


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


async def gone(pid: int, within_s: float) -> float:
    began = time.monotonic()
    async with asyncio.timeout(within_s):
        while is_running(pid):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)
    return time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_open_streams_with_a_fault_and_then_the_process(
    number: signal.Signals,
) -> None:
    port = free_port()
    with serving(fake_command(port), port) as process:
        worker = worker_of(process.pid)
        async with (
            http2_client(f"http://127.0.0.1:{port}") as client,
            opened(client, opening(prompt=(STALLS,))) as stream,
        ):
            await stream.opened()
            process.send_signal(number)
            (fault,) = await stream.rest()
        await gone(process.pid, within_s=5)

    assert isinstance(fault, Fault)
    assert (fault.code, fault.retryable) == ("shutting_down", True)
    assert process.returncode == 0
    assert not is_running(worker)


async def test_the_worker_does_not_outlive_a_killed_parent() -> None:
    port = free_port()
    with serving(fake_command(port), port) as process:
        worker = worker_of(process.pid)
        process.kill()
        await gone(worker, within_s=5)

    async with http2_client(f"http://127.0.0.1:{port}") as client:
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
    async with asyncio.timeout(10):
        while True:
            try:
                return await client.get(path)
            except httpx.TransportError:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model", "nope"], "no model 'nope'"),
        (["--bogus", "1"], "bogus"),
        (["--config", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(options: list[str], told: str) -> None:
    command = [sys.executable, "-m", "verifier", "--port", str(free_port()), *options]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env=_environ(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert ended.returncode == 1
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr


def _environ() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}
