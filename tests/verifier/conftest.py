"""The fake target behind the real server, its clients by HTTP/2, and the embedded target."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import pyqwest
import pytest
import pytest_asyncio
from pyqwest.httpx import AsyncPyqwestTransport

from bench.run.services import free_port
from speculation.model_facts import Limits
from tests.guards import GUARD_S
from tests.local_models.llama_cpp.hybrids import write
from tests.verifier import served_llama
from verifier.host import Host

KEY = "correct-horse"
ROOT = Path(__file__).parents[2]


@contextmanager
def serving(
    command: list[str], port: int, keys: str = f"other,{KEY}"
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server and wait until it is ready; stop it at the end."""
    with running(command, keys) as process:
        _wait_for(port, process)
        yield process


@contextmanager
def running(
    command: list[str], keys: str = f"other,{KEY}"
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server; stop it at the end."""
    environ = {**os.environ, "PICOSPEC_API_KEYS": keys, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environ, cwd=ROOT, process_group=0)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=GUARD_S)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(6000):
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}")
        try:
            ready = httpx.get(f"http://127.0.0.1:{port}/ready", trust_env=False, verify=False)
        except httpx.TransportError:
            pass
        else:
            if ready.status_code == 200:
                return
        time.sleep(0.05)
    raise RuntimeError("the server did not come up")


def fake_command(port: int, **settings: object) -> list[str]:
    quick = {"drain_timeout_s": 0.0}
    overrides = msgspec.json.encode(quick | settings).decode()
    return [sys.executable, str(ROOT / "tests/verifier/fake_target.py"), str(port), overrides]


WITH_HEAD = " with a head"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Host]:
    """Run the embedded target in this process, on SmolLM2 or on random weights of an
    architecture that a test names."""
    name = getattr(request, "param", "smollm2")
    if name == "smollm2":
        opened = served_llama.serving()
    else:
        has_head, limits = name.endswith(WITH_HEAD), Limits(max_verify=8)
        file = tmp_path_factory.mktemp("random") / "model.gguf"
        path = write(name.removesuffix(WITH_HEAD), file, has_head=has_head)
        serve = served_llama.serving_head if has_head else served_llama.serving
        opened = serve(path, limits)
    async with opened as host:
        yield host


@contextmanager
def fake_verifier(
    keys: str = f"other,{KEY}", **settings: object
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Serve the fake target; give the process and its address."""
    port = free_port()
    with serving(fake_command(port, **settings), port, keys) as process:
        yield process, f"http://127.0.0.1:{port}"


def http2_client(url: str, key: str = KEY) -> httpx.AsyncClient:
    transport = pyqwest.HTTPTransport(http_version=pyqwest.HTTPVersion.HTTP2, enable_otel=False)
    return httpx.AsyncClient(
        base_url=url,
        transport=AsyncPyqwestTransport(transport),
        headers={"authorization": f"Bearer {key}"},
        timeout=GUARD_S,
    )


async def metrics(client: httpx.AsyncClient) -> dict[str, float]:
    """What the server counts, by name and labels."""
    rows = (await client.get("/metrics")).text.splitlines()
    pairs = (row.rsplit(" ", 1) for row in rows if not row.startswith("#"))
    return {name: float(value) for name, value in pairs}


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until an async condition holds."""
    async with asyncio.timeout(GUARD_S):
        while not await condition():  # noqa: ASYNC110 - the condition is in another process
            await asyncio.sleep(0.02)


async def until_open(client: httpx.AsyncClient, sessions: int) -> None:
    """Wait until the server has so many sessions."""

    async def reached() -> bool:
        return (await metrics(client))["picospec:sessions_open"] == sessions

    await until(reached)
