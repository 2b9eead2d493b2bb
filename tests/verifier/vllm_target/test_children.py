"""However the service ends, vLLM's processes end with it. (First: one engine at a time.)"""

from __future__ import annotations

import asyncio
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

from bench.run.services import free_port
from tests.gateway.orphans import ONLY_LINUX, ends_with, start
from tests.guards import GUARD_S
from tests.verifier.conftest import ROOT
from tests.verifier.vllm_target.conftest import SMALL, START_S, wait_for
from verifier.vllm_target.parent_watchdog import die_with_parent


@contextmanager
def running(directory: Path, port: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        sys.executable, "-m", "verifier", "--target", "vllm", "--port", str(port),
        "--model", str(directory), "--vllm.self-test", "false", *SMALL, *options,
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        yield process
    finally:
        process.kill()
        process.wait(timeout=GUARD_S)


def engine_of(process: subprocess.Popen[bytes]) -> list[Any]:
    """Return the service's descendants, once vLLM's core is among them."""
    psutil = pytest.importorskip("psutil")
    for _ in range(START_S):
        family = psutil.Process(process.pid).children(recursive=True)
        if any("EngineCore" in child.name() for child in family):
            return list(family)
        time.sleep(1)
    pytest.fail("vLLM's core did not start")


def assert_gone(family: list[Any]) -> None:
    psutil = pytest.importorskip("psutil")
    _, left = psutil.wait_procs(family, timeout=GUARD_S)
    zombies = psutil.STATUS_ZOMBIE  # dead, and not yet collected by this machine's init
    assert [each for each in left if each.is_running() and each.status() != zombies] == []


@pytest.mark.long
@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("number", "is_ready"),
    [(signal.SIGTERM, True), (signal.SIGKILL, True), (signal.SIGKILL, False)],
    ids=["ended", "killed", "killed while its model loads"],
)
def test_no_process_outlives_the_service(
    directory: Path, number: signal.Signals, is_ready: bool
) -> None:
    port = free_port()
    with running(directory, port) as service:
        if is_ready:
            wait_for(service, f"http://127.0.0.1:{port}/ready")
        family = engine_of(service)

        service.send_signal(number)

        assert_gone(family)


@pytest.mark.long
@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
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

        assert service.wait(timeout=GUARD_S) == 1
        assert_gone(family)


# A process of vLLM's ends when the process that started it is gone.


@pytest.mark.parametrize("stopped", [False, pytest.param(True, marks=ONLY_LINUX)])
async def test_a_multiprocessing_child_dies_with_its_parent(
    tmp_path: Path, stopped: bool
) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, os, time\n"
        "from verifier.vllm_target.parent_watchdog import die_with_parent\n"
        "def child():\n"
        "    print(os.getpid(), die_with_parent(), die_with_parent(), flush=True)\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.get_context('spawn').Process(target=child).start()\n"
        "    time.sleep(60)\n"
    )
    parent, printed = await start(str(script))
    async with asyncio.timeout(GUARD_S):
        pid, *watches = (await printed.readline()).decode().split()
    if stopped:
        os.kill(int(pid), signal.SIGSTOP)

    gone = await ends_with(parent, int(pid))

    assert watches == ["True", "True"]
    assert gone


@ONLY_LINUX
async def test_a_core_whose_parent_is_gone_before_it_looks_dies(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, os, sys, time, types\n"
        "def core(*args):\n"
        "    print('waits for its parent', flush=True)\n"
        "    time.sleep(60)\n"
        "module = types.ModuleType('vllm.v1.engine.core')\n"
        "module.EngineCoreProc = types.SimpleNamespace(run_engine_core=core)\n"
        "sys.modules['vllm.v1.engine.core'] = module\n"
        "from verifier.vllm_target.parent_watchdog import run_engine_core\n"
        "def child(parent):\n"
        "    print(os.getpid(), flush=True)\n"
        "    while os.getppid() == parent:\n"
        "        time.sleep(0.01)\n"
        "    run_engine_core()\n"
        "if __name__ == '__main__':\n"
        "    spawn = multiprocessing.get_context('spawn')\n"
        "    spawn.Process(target=child, args=(os.getpid(),)).start()\n"
        "    time.sleep(60)\n"
    )
    parent, printed = await start(str(script))
    async with asyncio.timeout(GUARD_S):
        pid = int(await printed.readline())

    assert await ends_with(parent, pid)


def test_a_process_that_multiprocessing_did_not_start_is_not_watched() -> None:
    assert not die_with_parent()
