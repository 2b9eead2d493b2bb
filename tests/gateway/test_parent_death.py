"""A process ends when the process that started it is gone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from asyncio.subprocess import Process
from pathlib import Path

import pytest

from picospec.bench.run.services import free_port
from picospec.gateway.hosting.parent_death import bound_to_parent
from tests.gateway.test_processes import FAKE, until_gone

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
ONLY_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")


async def start(*arguments: str) -> tuple[Process, asyncio.StreamReader]:
    """Start Python; return the process, and what it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, env=ENVIRONMENT
    )
    assert process.stdout is not None
    return process, process.stdout


async def ends_with(parent: Process, pid: int) -> bool:
    """Kill the parent, and return whether the process `pid` ends by itself then."""
    parent.kill()
    gone = await until_gone(pid, within_s=5)
    if not gone:
        os.kill(pid, signal.SIGKILL)  # or its pipe would hold up the wait
    await parent.communicate()  # to the end of its pipe, or its transport stays open
    return gone


@ONLY_LINUX
async def test_a_child_does_not_outlive_a_parent_that_is_killed_outright() -> None:
    fake = (sys.executable, FAKE, str(free_port()))
    script = (
        "import subprocess, sys\n"
        "from picospec.gateway.hosting.parent_death import bound_to_parent\n"
        f"child = subprocess.Popen(bound_to_parent({fake!r}, ()), start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    parent, printed = await start("-c", script)
    pid = int(await printed.readline())
    assert await printed.readline() == b"serving\n"

    assert await ends_with(parent, pid)


def test_a_child_starts_where_linuxs_calls_are_missing() -> None:
    script = (
        "import ctypes, os, sys\n"
        "sys.platform = 'darwin'\n"
        "del os.sched_setaffinity, os.sched_getaffinity, ctypes.CDLL\n"
        "from picospec.gateway.hosting import parent_death\n"
        "parent_death.main([str(os.getppid()), '0', 'echo', 'started'])\n"
    )

    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert child.stdout == "started\n", child.stderr


@ONLY_LINUX
def test_a_bound_command_runs_on_its_cores() -> None:
    core = min(os.sched_getaffinity(0))
    command = (sys.executable, "-c", "import os; print(os.sched_getaffinity(0))")

    ended = subprocess.run(bound_to_parent(command, [core]), capture_output=True, text=True)

    assert ended.stdout.strip() == str({core})


def test_a_bound_command_does_not_start_when_its_parent_is_gone_already() -> None:
    command = bound_to_parent((sys.executable, "-c", "print('ran')"), ())
    command[3] = str(os.getppid())  # not the process that starts it

    ended = subprocess.run(command, capture_output=True)

    assert (ended.returncode, ended.stdout) == (1, b"")


@ONLY_LINUX
async def test_a_worker_whose_parent_is_gone_before_it_looks_ends(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, os, signal, time\n"
        "from picospec.gateway.hosting.parent_death import end_with_parent\n"
        "def worker(parent):\n"
        "    print(os.getpid(), flush=True)\n"
        "    while os.getppid() == parent:\n"
        "        time.sleep(0.01)\n"
        "    end_with_parent(signal.SIGTERM, 0.0)\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    spawn = multiprocessing.get_context('spawn')\n"
        "    spawn.Process(target=worker, args=(os.getpid(),)).start()\n"
        "    time.sleep(60)\n"
    )
    parent, printed = await start(str(script))
    async with asyncio.timeout(20):
        pid = int(await printed.readline())

    assert await ends_with(parent, pid)


def test_the_module_needs_the_standard_library_alone() -> None:
    command = [sys.executable, "-S", "-c", "import picospec.gateway.hosting.parent_death"]

    assert subprocess.run(command, env=ENVIRONMENT).returncode == 0
