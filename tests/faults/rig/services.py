"""A verifier or an edge as a process that can be killed, stopped, starved and started again."""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import httpx

from bench.run.services import free_port
from gateway.hosting.parent_death import bound_to_parent
from tests.edge_agent.processes import ROOT
from tests.fakes.faulty_link import FaultyLink

READY_WITHIN_S: Final = 300.0
ENDS_WITHIN_S: Final = 60.0
FULL_BYTES: Final = 0
"""Size that a file may reach on a full disk."""


class Service:
    """One process group. Its output goes to a file of its own in `folder`."""

    def __init__(self, name: str, module: str, folder: Path, *options: str) -> None:
        self.name = name
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.order = folder / f"{name}.order"
        self.log = folder / f"{name}.log"
        self.log.write_bytes(b"")
        self.environment: dict[str, str] = {}
        self.descriptors: int | None = None
        """Its limit of file descriptors, if not the test's."""

        self._command = (
            sys.executable, "-m", "tests.faults.rig.breakable", str(self.order), module,
            "--port", str(self.port), *options,
        )  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PICOSPEC_API")}
        self.order.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                bound_to_parent(self._command, ()),
                cwd=ROOT,
                env={**kept, "PYTHONPATH": str(ROOT), **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        if self.descriptors is not None:  # before it reads its limit
            most = (self.descriptors, self.descriptors)
            resource.prlimit(self._process.pid, resource.RLIMIT_NOFILE, most)

    @contextmanager
    def on(self, disk: Path) -> Iterator[None]:
        """Have it keep its log, and what it caches, on another disk if it is started now."""
        log, environment = self.log, self.environment
        self.log = disk / log.name
        self.environment = {**environment, "PICOSPEC_CACHE": str(disk)}
        try:
            yield
        finally:
            self.log, self.environment = log, environment

    @property
    def running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, f"{self.name} was not started"
        return self._process

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    # --- what may happen to it

    def signal_all(self, number: int) -> None:
        """Send a signal to all its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.running.pid, number)

    async def kill(self) -> None:
        self.signal_all(signal.SIGKILL)
        await self.ended()

    async def terminate(self) -> None:
        """Ask it to end, as a supervisor does, and wait until it has."""
        self.running.terminate()
        await self.ended()

    async def ended(self) -> None:
        deadline = time.monotonic() + ENDS_WITHIN_S
        while self.running.poll() is None:
            assert time.monotonic() < deadline, f"{self.name} does not end"
            await asyncio.sleep(0.02)
        self.signal_all(signal.SIGKILL)  # what it may have left

    def fill_disk(self, full: bool) -> None:
        """Let no file grow that it writes, its log included, or let all grow again."""
        for pid in self.pids:
            _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (FULL_BYTES if full else most, most))

    def take_descriptors(self, taken: bool) -> None:
        """Let it open nothing, as where all its descriptors are in use, or let it again."""
        for pid in self.pids:
            _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
            free = next(number for number in itertools.count() if number not in used)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (free if taken else most, most))

    def end(self) -> None:
        """Kill it, if it runs."""
        if self.alive:
            self.signal_all(signal.SIGKILL)
            self.running.wait()

    # --- what is known of it

    @property
    def pids(self) -> list[int]:
        """The processes of its group."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                if int(stat.read_text().rpartition(")")[2].split()[2]) == self.running.pid:
                    found.append(int(stat.parent.name))
        return found

    async def tasks(self) -> list[str]:
        """Return the tasks that its event loop runs."""
        listing = self.order.with_suffix(".tasks")
        listing.unlink(missing_ok=True)
        for pid in self.pids:
            if _tells(pid):
                os.kill(pid, signal.SIGUSR2)
        async with asyncio.timeout(10):
            while not listing.exists():  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)
        await asyncio.sleep(0.2)
        return listing.read_text().splitlines()

    async def ready(self, http: httpx.AsyncClient) -> None:
        """Wait until it serves."""
        deadline = time.monotonic() + READY_WITHIN_S
        while not await self.serves(http):
            assert self.alive, f"{self.name} has ended: {self.said()}"
            assert time.monotonic() < deadline, f"{self.name} is not ready: {self.said()}"
            await asyncio.sleep(0.1)

    def said(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-3000:]

    async def serves(self, http: httpx.AsyncClient) -> bool:
        try:
            return (await http.get(f"{self.url}/ready", timeout=5)).status_code == 200
        except httpx.TransportError:
            return False

    async def gauge(self, http: httpx.AsyncClient, name: str) -> dict[str, float]:
        """Return a metric's values by their labels."""
        text = (await http.get(f"{self.url}/metrics", timeout=10)).text
        lines = [line.rsplit(" ", 1) for line in text.splitlines()]
        return {
            label.removeprefix(name): float(value[0])
            for label, *value in lines
            if label == name or label.startswith(f"{name}{{")
        }


def _tells(pid: int) -> bool:
    """Return whether a process tells its tasks; others would end at that signal."""
    return b"breakable" in Path(f"/proc/{pid}/cmdline").read_bytes()


class Verifier(Service):
    """The edge reaches it over a link of its own, which refuses connections as a host does
    where the process has ended."""

    def __init__(self, name: str, folder: Path, *options: str) -> None:
        super().__init__(name, "verifier", folder, *options)
        self.link = FaultyLink(self.port)
        self._opening: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._opening:
            self._opening.cancel()
        self.link.close_port()
        super().start()
        self._opening = asyncio.create_task(self._open_link())

    async def ended(self) -> None:
        await super().ended()
        self.link.close_port()

    async def _open_link(self) -> None:
        """Let the link listen when the process does."""
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                break
            await asyncio.sleep(0.05)
        await self.link.listen()

    async def ready(self, http: httpx.AsyncClient) -> None:
        await super().ready(http)
        if self._opening:
            await self._opening

    def end(self) -> None:
        super().end()
        if self._opening:
            self._opening.cancel()
