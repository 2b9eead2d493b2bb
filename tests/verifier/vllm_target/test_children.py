"""However the service ends, vLLM's processes end with it. (First: one engine at a time.)"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.verifier.conftest import ROOT, free_port

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]
START_S = 240
GONE_S = 10


@pytest.fixture
def service(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    port = free_port()
    options = "dtype=float32 max-model-len=256 max-num-seqs=4 kv-cache-memory-bytes=134217728"
    command = [sys.executable, "-m", "verifier", "--target", "vllm", "--model", str(directory)]
    command += ["--port", str(port), "--vllm.self-test", "false"]
    for option in options.split():
        name, value = option.split("=")
        command += [f"--vllm.{name}", value]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        wait_until_ready(process, port)
        yield process
    finally:
        process.kill()
        process.wait(timeout=10)


def wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(START_S * 2):
        assert process.poll() is None, "the service ended"
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    pytest.fail("the service was not ready in time")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_service(
    service: subprocess.Popen[bytes], number: signal.Signals
) -> None:
    psutil = pytest.importorskip("psutil")
    family = psutil.Process(service.pid).children(recursive=True)
    assert any("EngineCore" in child.name() for child in family)

    service.send_signal(number)

    _, alive = psutil.wait_procs(family, timeout=GONE_S)
    assert alive == []
