"""Services as children: they start, are heard, and never outlive who started them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from cli import processes as children
from gateway.hosting.processes import NeverHealthy, Service, ServiceDied, keep_up

FAKE = str(Path(__file__).with_name("fake_service.py"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def service(name: str, *manner: str) -> Service:
    port = free_port()
    command = (sys.executable, FAKE, str(port), *manner)
    return Service(name, command, f"http://127.0.0.1:{port}")


class Heard:
    """What services said, and a way to wait for a word."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self._said = asyncio.Event()

    async def next(self) -> str:
        self._said.clear()
        async with asyncio.timeout(10):
            await self._said.wait()
        return self.lines[-1][1]

    def __call__(self, name: str, line: str) -> None:
        self.lines.append((name, line))
        self._said.set()

    async def until(self, *wanted: tuple[str, str]) -> None:
        async with asyncio.timeout(10):
            while not set(wanted) <= set(self.lines):
                self._said.clear()
                await self._said.wait()


async def run_until_all_serve(services: Sequence[Service], heard: Heard) -> None:
    stopped = asyncio.Event()

    async def stop_when_serving() -> None:
        await heard.until(*((one.name, "serving") for one in services))
        stopped.set()

    await keep_up(services, hear=heard, meanwhile=stop_when_serving, stopped=stopped)


def is_alive(pid: int) -> bool:
    """A zombie has ended, whether or not anyone has asked how."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def until_gone(pid: int, *, within_s: float) -> bool:
    for _ in range(int(within_s / 0.02)):
        if not is_alive(pid):
            return True
        await asyncio.sleep(0.02)
    return False


async def test_services_stop_in_the_reverse_order_of_their_start() -> None:
    heard = Heard()

    await run_until_all_serve([service("verifier"), service("edge")], heard)

    assert [name for name, line in heard.lines if line == "stopping"] == ["edge", "verifier"]


async def test_a_service_that_dies_brings_all_down_in_its_own_words() -> None:
    heard = Heard()

    async def wait_forever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(ServiceDied, match="no model to be found") as caught:
        await keep_up(
            [service("verifier"), service("edge", "dies")],
            hear=heard,
            meanwhile=wait_forever,
            stopped=asyncio.Event(),
        )

    assert (caught.value.name, caught.value.status) == ("edge", 3)
    assert len(asyncio.all_tasks()) == 1


async def test_a_service_that_is_never_healthy_is_quoted() -> None:
    heard = Heard()

    async def give_up() -> None:
        await heard.until(("verifier", "serving"))
        raise NeverHealthy("verifier", 0.1)

    with pytest.raises(NeverHealthy, match=r"verifier was not healthy within 0\.1 s\nserving"):
        await keep_up(
            [service("edge"), service("verifier")],
            hear=heard,
            meanwhile=give_up,
            stopped=asyncio.Event(),
        )


async def test_a_service_deaf_to_sigterm_is_killed_after_its_grace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(children, "GRACE_S", 0.1)
    heard = Heard()

    async with asyncio.timeout(5):
        await run_until_all_serve([service("verifier", "deaf")], heard)

    assert heard.lines[-1] == ("verifier", "did not stop within 0.1 s; killed")


async def test_what_runs_meanwhile_may_fail_and_all_stop() -> None:
    async def fail() -> None:
        raise LookupError("no such thing")

    with pytest.raises(LookupError):
        await keep_up(
            [service("verifier")], hear=Heard(), meanwhile=fail, stopped=asyncio.Event()
        )


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
async def test_a_child_does_not_outlive_a_parent_that_is_killed_outright() -> None:
    fake = (sys.executable, FAKE, str(free_port()))
    script = (
        "import subprocess, sys\n"
        "from gateway.hosting.parent_death import leashed\n"
        f"child = subprocess.Popen(leashed({fake!r}, ()), start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert await parent.stdout.readline() == b"serving\n"

    parent.kill()
    gone = await until_gone(pid, within_s=5)
    if not gone:
        os.kill(pid, signal.SIGKILL)  # or its pipe would hold up the wait
    await parent.wait()

    assert gone


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
async def test_a_leashed_command_runs_on_its_cores() -> None:
    core = min(os.sched_getaffinity(0))
    command = (sys.executable, "-c", "import os; print(os.sched_getaffinity(0))")

    process = await asyncio.create_subprocess_exec(
        *children.leashed(command, [core]), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()

    assert output.decode().strip() == str({core})


async def test_a_leash_held_by_nobody_lets_nothing_start() -> None:
    command = children.leashed((sys.executable, "-c", "print('ran')"), ())
    command[3] = str(os.getppid())  # not who starts it

    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()

    assert (process.returncode, output) == (1, b"")


async def test_what_a_service_started_ends_with_it() -> None:
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    heard, stopped = Heard(), asyncio.Event()

    async def stop_at_the_first_word() -> None:
        await heard.next()
        stopped.set()

    parent = Service("verifier", (sys.executable, "-c", script), "http://unused")
    async with asyncio.timeout(10):
        await keep_up([parent], hear=heard, meanwhile=stop_at_the_first_word, stopped=stopped)

    assert await until_gone(int(heard.lines[0][1]), within_s=2)
