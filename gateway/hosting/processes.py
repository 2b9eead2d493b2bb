"""Runs services as child processes: starts, watches and stops them together.

* ServiceError
  - ServiceDied    a service ended by itself
  - NeverReady     a service did not answer /ready in time

Rules:
* the first service that ends by itself stops all others; the error quotes its last lines. If
  the caller wishes, a service that failed is started again instead, a few times;
* services stop in the reverse order of their start: SIGTERM, then SIGKILL after `GRACE_S`;
* each service leads its own process group, so that the processes it started end with it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass, field
from typing import Final, Self

from gateway.background_work import running_alongside
from gateway.hosting.parent_death import bound_to_parent
from gateway.system import kill_group

GRACE_S: Final = 15.0
"""`picospec up`: SIGKILL follows SIGTERM after this many seconds, which exceed the 10 s that
the verifier gives its worker."""

LAST_LINES_S: Final = 5.0
"""The last lines of a service that has ended are awaited for this many seconds."""

LAST_LINES: Final = 20
"""The error of a service that ends or never gets ready quotes this many lines of output."""

RESTART_WAITS_S: Final = (1.0, 5.0, 15.0)
"""`picospec up`: a service that failed is started again after the first wait, and after the
next ones if it fails again; a service that fails after the last wait is not started again."""

LINE_LIMIT_BYTES: Final = 1 << 20
"""A longer line of output is dropped."""

OnLine = Callable[[str, str], None]
"""Takes the name of a service and a line that the service printed."""


class ServiceError(Exception):
    """The message ends with the service's last lines of output, if there are any."""


class ServiceDied(ServiceError):
    def __init__(self, name: str, status: int, last_lines: Collection[str]) -> None:
        how = f"signal {-status}" if status < 0 else f"status {status}"
        self.event = f"the {name} ended with {how}"
        super().__init__("\n".join([self.event, *last_lines]))
        self.name, self.status = name, status


class NeverReady(ServiceError):
    def __init__(self, name: str, within_s: float, last_lines: Collection[str] = ()) -> None:
        reason = f"the {name} was not ready within {within_s:g} s"
        super().__init__("\n".join([reason, *last_lines]))
        self.name, self.within_s = name, within_s


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    command: tuple[str, ...]
    url: str
    """The service will listen at this URL, which has no path."""

    cores: Collection[int] = frozenset()
    """The service may use these CPU cores; empty means any."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """These variables are added to the process's own, which take precedence."""

    ready_path: str = "/ready"
    """This path answers 200 once the service is ready."""


class Child:
    """Runs one service, from entering `async with` until leaving it."""

    def __init__(self, service: Service, on_line: OnLine, tasks: asyncio.TaskGroup) -> None:
        self.service = service
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._on_line = on_line
        self._tasks = tasks

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def _start(self) -> None:
        read_end, write_end = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *bound_to_parent(self.service.command, self.service.cores),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                env={**self.service.environment, **os.environ},
                process_group=0,  # in our session: docs/decisions.md, "A service that stops"
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        self._relay = self._tasks.create_task(self._relay_lines(read_end))

    async def __aexit__(self, *error: object) -> None:
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), GRACE_S)
        except TimeoutError:
            self._on_line(self.service.name, f"did not stop within {GRACE_S:g} s; killed")
        finally:
            self._kill_group()
        await self._process.wait()
        await self._end_relay()

    @property
    def pid(self) -> int:
        """Return the id of the service's process, and of the group that it leads."""
        return self._process.pid

    async def died(self) -> None:
        """Wait until the service ends by itself; raise ServiceDied."""
        status = await self._process.wait()
        self._kill_group()
        await self._end_relay()
        raise ServiceDied(self.service.name, status, self.last_lines)

    async def died_for_good(self, restarts: asyncio.Event) -> None:
        """Start the service again when it fails, once `restarts` is set. Raises ServiceDied if
        the service has failed too often, or has ended without a failure."""
        waits_s = iter(RESTART_WAITS_S)
        while True:
            began = time.monotonic()
            try:
                await self.died()
            except ServiceDied as death:
                if time.monotonic() - began > 600.0:
                    waits_s = iter(RESTART_WAITS_S)
                wait_s = next(waits_s, None)
                if not restarts.is_set() or not death.status or wait_s is None:
                    raise
                again = f"{death.event}; it is started again in {wait_s:g} s"
                self._on_line(self.service.name, again)
                await asyncio.sleep(wait_s)
                await self._start()

    async def _end_relay(self) -> None:
        """Pass on the last lines. A process that left the group may hold the pipe for ever."""
        await asyncio.wait([self._relay], timeout=LAST_LINES_S)
        self._relay.cancel()

    def _kill_group(self) -> None:
        kill_group(self._process.pid)

    async def _relay_lines(self, read_end: int) -> None:
        """Pass on lines until the last process that holds the pipe has ended.

        The pipe is our own: with asyncio's pipe, wait() would not return while a process that
        the service started keeps the pipe open.
        """
        pipe = os.fdopen(read_end, "rb")
        if sys.platform == "win32":  # its loop cannot wait for such a pipe
            with pipe:
                while line := await asyncio.to_thread(pipe.readline, LINE_LIMIT_BYTES):
                    self._pass_on(line)
            return
        loop = asyncio.get_running_loop()
        lines = asyncio.StreamReader(limit=LINE_LIMIT_BYTES)
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), pipe
        )
        with closing(transport):
            while line := await _next_line(lines):
                self._pass_on(line)

    def _pass_on(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        self.last_lines.append(text)
        self._on_line(self.service.name, text)


async def _next_line(lines: asyncio.StreamReader) -> bytes:
    """Return a line, or b"" at the end; skip lines above the limit."""
    while True:
        with suppress(ValueError):
            return await lines.readline()


async def keep_up(
    services: Sequence[Service],
    *,
    on_line: OnLine,
    meanwhile: Callable[[], Coroutine[None, None, None]],
    stopped: asyncio.Event,
    restarts: asyncio.Event | None = None,
) -> None:
    """Run `services`, and `meanwhile` concurrently with them, until `stopped` is set.

    restarts: once this is set, a service that fails is started again.

    All services have stopped once this returns or raises. Raises ServiceError, or what
    `meanwhile` raised.
    """
    async with running_alongside() as relays, AsyncExitStack() as running:
        children = [
            await running.enter_async_context(Child(service, on_line, relays))
            for service in services
        ]
        await while_alive(children, stopped.wait(), meanwhile(), restarts=restarts)


async def while_alive(
    children: Sequence[Child],
    until: Awaitable[object],
    *meanwhile: Coroutine[None, None, None],
    restarts: asyncio.Event | None = None,
) -> None:
    """Await `until`, and run `meanwhile` until then, as long as all `children` live.

    Raises ServiceDied, or what `until` or `meanwhile` raised; a NeverReady then quotes the
    last lines of the child that it names.
    """
    deaths = [child.died_for_good(restarts) if restarts else child.died() for child in children]
    try:
        async with running_alongside(*deaths, *meanwhile):
            await until
    except NeverReady as error:
        printed = {child.service.name: child.last_lines for child in children}
        raise NeverReady(error.name, error.within_s, printed[error.name]) from None
