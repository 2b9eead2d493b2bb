"""Services as children: they start, their output is passed on, and they stop together, or when
the process that started them is gone."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import httpx
import pytest

from bench.run.services import free_port
from gateway.hosting import processes
from gateway.hosting.parent_death import bound_to_parent
from gateway.hosting.processes import NeverReady, Service, ServiceDied, keep_up
from gateway.hosting.readiness import until_ready
from tests.gateway.orphans import ENVIRONMENT, ONLY_LINUX, ends_with, start, until_gone
from tests.guards import GUARD_S

FAKE = str(Path(__file__).with_name("fake_service.py"))


def service(name: str, *manner: str) -> Service:
    port = free_port()
    command = (sys.executable, FAKE, str(port), *manner)
    return Service(name, command, f"http://127.0.0.1:{port}")


def running(name: str, script: str) -> Service:
    return Service(name, (sys.executable, "-c", script), "http://unused")


class Output:
    """It keeps what services printed, and waits for it."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self._printed = asyncio.Event()

    def __call__(self, name: str, line: str) -> None:
        self.lines.append((name, line))
        self._printed.set()

    async def until(self, is_there: Callable[[], bool]) -> None:
        async with asyncio.timeout(GUARD_S):
            while not is_there():
                self._printed.clear()
                await self._printed.wait()

    async def until_all_serve(self, services: Sequence[Service]) -> None:
        wanted = {(one.name, "serving") for one in services}
        await self.until(lambda: wanted <= set(self.lines))


async def nothing() -> None:
    pass


async def run(
    *services: Service,
    output: Output | None = None,
    meanwhile: Callable[[], Awaitable[None]] = nothing,
    stopped: asyncio.Event | None = None,
    restarts: asyncio.Event | None = None,
) -> None:
    await keep_up(
        services,
        on_line=output or Output(),
        meanwhile=meanwhile,
        stopped=stopped or asyncio.Event(),
        restarts=restarts,
    )


async def run_until_all_serve(*services: Service, output: Output) -> None:
    stopped = asyncio.Event()

    async def stop_when_serving() -> None:
        await output.until_all_serve(services)
        stopped.set()

    await run(*services, output=output, meanwhile=stop_when_serving, stopped=stopped)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
async def test_a_service_that_cannot_be_started_leaves_no_file_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "bound_to_parent", lambda *_: ["/nowhere/to/be/found"])
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(5):
        with pytest.raises(FileNotFoundError):
            await run(service("verifier"))

    assert len(os.listdir("/proc/self/fd")) == before


async def test_services_stop_in_the_reverse_order_of_their_start() -> None:
    output = Output()

    await run_until_all_serve(service("verifier"), service("edge"), output=output)

    assert [name for name, line in output.lines if line == "stopping"] == ["edge", "verifier"]


async def test_a_service_that_dies_before_all_are_ready_brings_all_down_and_is_quoted() -> None:
    output = Output()

    with pytest.raises(ServiceDied, match="no model to be found") as caught:
        await run(
            service("verifier"),
            service("edge", "dies"),
            output=output,
            meanwhile=asyncio.Event().wait,
            restarts=asyncio.Event(),
        )

    said = [line for name, line in output.lines if name == "edge"]
    assert said == ["no model to be found"]  # it was not started again
    assert (caught.value.name, caught.value.status) == ("edge", 3)
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize(("status", "starts"), [(3, 3), (0, 1)])
async def test_a_service_that_fails_is_started_again_but_not_forever(
    monkeypatch: pytest.MonkeyPatch, status: int, starts: int
) -> None:
    monkeypatch.setattr(processes, "RESTART_WAITS_S", (0.01, 0.02))
    script = f"print('begun', flush=True); raise SystemExit({status})"
    output, ready = Output(), asyncio.Event()
    ready.set()

    edge = running("edge", script)
    with pytest.raises(ServiceDied, match=f"the edge ended with status {status}"):
        await run(service("verifier"), edge, output=output, restarts=ready)

    lines = [line for name, line in output.lines if name == "edge"]
    again = "the edge ended with status 3; it is started again in 0.01 s"
    assert lines.count("begun") == starts
    assert lines[1:2] == [again] * (starts > 1)


async def test_a_service_that_is_never_ready_is_quoted() -> None:
    output, verifier = Output(), service("verifier")

    async def give_up() -> None:
        await output.until_all_serve([verifier])
        raise NeverReady("verifier", 0.1)

    with pytest.raises(NeverReady, match=r"verifier was not ready within 0\.1 s\nserving"):
        await run(service("edge"), verifier, output=output, meanwhile=give_up)


async def test_a_service_that_ignores_sigterm_is_killed_after_the_grace_period(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "GRACE_S", 0.1)
    output = Output()

    async with asyncio.timeout(GUARD_S):
        await run_until_all_serve(service("verifier", "ignores-sigterm"), output=output)

    assert output.lines[-1] == ("verifier", "did not stop within 0.1 s; killed")


async def test_what_a_service_started_ends_with_it() -> None:
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(3600)\n"
    )
    output, stopped = Output(), asyncio.Event()

    async def stop_at_the_first_line() -> None:
        await output.until(lambda: bool(output.lines))
        stopped.set()

    parent = running("verifier", script)
    async with asyncio.timeout(GUARD_S):
        await run(parent, output=output, meanwhile=stop_at_the_first_line, stopped=stopped)

    assert await until_gone(int(output.lines[0][1]))


async def test_what_a_dead_service_left_behind_does_not_hide_that_it_died(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "LAST_LINES_S", 0.1)
    sleeps = "[sys.executable, '-c', 'import time; time.sleep(3)']"
    script = (
        "import subprocess, sys\n"
        f"subprocess.Popen({sleeps}, start_new_session=True)\n"
        "print('gone', flush=True)\n"
        "raise SystemExit(3)\n"
    )

    with pytest.raises(ServiceDied, match="status 3\ngone"):
        await run(running("edge", script))


async def test_a_service_that_never_listens_is_named_after_the_wait() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        silent = Service("edge", (), f"http://127.0.0.1:{probe.getsockname()[1]}")

    waited_for: list[Service] = []
    async with httpx.AsyncClient(trust_env=False) as client:
        with pytest.raises(NeverReady, match=r"edge was not ready within 0\.1 s"):
            await until_ready([silent], client, within_s=0.1, on_wait=waited_for.append)

    assert waited_for == [silent]


# A process ends when the process that started it is gone.


@ONLY_LINUX
async def test_a_child_does_not_outlive_a_parent_that_is_killed_outright() -> None:
    fake = (sys.executable, FAKE, str(free_port()))
    script = (
        "import subprocess, sys\n"
        "from gateway.hosting.parent_death import bound_to_parent\n"
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
        "from gateway.hosting import parent_death\n"
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
        "from gateway.hosting.parent_death import end_with_parent\n"
        "def worker(parent):\n"
        "    print(os.getpid(), flush=True)\n"
        "    while os.getppid() == parent:\n"
        "        time.sleep(0.01)\n"
        "    end_with_parent(signal.SIGTERM, 0.0)\n"
        "    time.sleep(3600)\n"
        "if __name__ == '__main__':\n"
        "    spawn = multiprocessing.get_context('spawn')\n"
        "    spawn.Process(target=worker, args=(os.getpid(),)).start()\n"
        "    time.sleep(3600)\n"
    )
    parent, printed = await start(str(script))
    async with asyncio.timeout(GUARD_S):
        pid = int(await printed.readline())

    assert await ends_with(parent, pid)


def test_the_module_needs_the_standard_library_alone() -> None:
    command = [sys.executable, "-S", "-c", "import gateway.hosting.parent_death"]

    assert subprocess.run(command, env=ENVIRONMENT).returncode == 0


async def test_lines_are_read_where_the_loop_cannot_wait_for_a_pipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cannot(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(asyncio.get_running_loop(), "connect_read_pipe", cannot)

    with pytest.raises(ServiceDied, match="status 3\nfirst\nlast"):
        await run(running("edge", "print('first'); print('last'); raise SystemExit(3)"))
