"""However the service ends, vLLM's processes end with it. (First: one engine at a time.)"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from picospec.bench.run.services import free_port
from tests.verifier.conftest import ROOT
from tests.verifier.vllm_target.conftest import SMALL
from tests.verifier.vllm_target.plain_serve import START_S, wait_for

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]
GONE_S = 10
NOTICED_S = 60
"""Two heartbeats and the two deadlines of the test, and some time for a busy machine."""

IMPORTED_S = 60
"""A process that is still importing watches its parent when that is done: seconds later, on a
machine that is not busy."""


@contextmanager
def running(directory: Path, port: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        sys.executable, "-m", "picospec.verifier", "--target", "vllm", "--port", str(port),
        "--model", str(directory), "--vllm.self-test", "false", *SMALL, *options,
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        yield process
    finally:
        process.kill()
        process.wait(timeout=10)


def engine_of(process: subprocess.Popen[bytes]) -> list[Any]:
    """Return the service's descendants, once vLLM's core is among them."""
    psutil = pytest.importorskip("psutil")
    for _ in range(START_S):
        family = psutil.Process(process.pid).children(recursive=True)
        if any("EngineCore" in child.name() for child in family):
            return list(family)
        time.sleep(1)
    pytest.fail("vLLM's core did not start")


def assert_gone(family: list[Any], within_s: float) -> None:
    psutil = pytest.importorskip("psutil")
    _, left = psutil.wait_procs(family, timeout=within_s)
    zombies = psutil.STATUS_ZOMBIE  # dead, and not yet collected by this machine's init
    assert [each for each in left if each.is_running() and each.status() != zombies] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_service(directory: Path, number: signal.Signals) -> None:
    port = free_port()
    with running(directory, port) as service:
        wait_for(service, f"http://127.0.0.1:{port}/ready")
        family = engine_of(service)

        service.send_signal(number)

        assert_gone(family, GONE_S)


def test_no_process_outlives_a_service_killed_while_its_model_loads(directory: Path) -> None:
    with running(directory, free_port()) as service:
        family = engine_of(service)

        service.send_signal(signal.SIGKILL)

        assert_gone(family, IMPORTED_S)


@pytest.mark.parametrize("name", ["EngineCore", "Worker"])
def test_a_process_of_the_engine_that_is_stopped_ends_the_service_and_all_of_them(
    directory: Path, name: str
) -> None:
    port, deadlines = free_port(), ("--pass-timeout-s", "10", "--stop-timeout-s", "8")
    with running(directory, port, *deadlines) as service:
        wait_for(service, f"http://127.0.0.1:{port}/ready")
        family = engine_of(service)
        parts = [child for child in family if name in child.name()]
        if not parts:
            pytest.skip(f"this engine has no process of its own for its {name}")

        parts[0].suspend()

        assert service.wait(timeout=NOTICED_S) == 1
        assert_gone(family, GONE_S)
