"""Services as child processes: started together, watched, and ended together.

* ServiceError
  - ServiceDied      a service ended by itself
  - NeverHealthy     a service did not answer /health in time

Rules:
* the first service to end brings all down, with its own words as the reason;
* services stop in the reverse order of their start, by SIGTERM, after `GRACE_S` by SIGKILL;
* each leads its own process group, so nothing it started is left behind.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from gateway.hosting.parent_death import leashed

GRACE_S = 15.0
"""More than the ten seconds that the verifier gives its own workers."""

LAST_LINES = 20
"""Kept for the error of a service that did not do its work."""

LINE_LIMIT_BYTES = 1 << 20

Hear = Callable[[str, str], None]
"""Called with a service's name and a line that it printed."""


class ServiceError(Exception):
    """Base of what can go wrong with a service."""


class ServiceDied(ServiceError):
    """A service ended by itself; `last_lines` is what it said last."""

    def __init__(self, name: str, status: int, last_lines: Iterable[str]) -> None:
        how = f"signal {-status}" if status < 0 else f"status {status}"
        super().__init__("\n".join([f"the {name} ended with {how}", *last_lines]))
        self.name, self.status = name, status
        self.last_lines = tuple(last_lines)


class NeverHealthy(ServiceError):
    """A service did not answer /health in time; the message ends with what it said last."""

    def __init__(self, name: str, within_s: float, last_lines: Iterable[str] = ()) -> None:
        said = f"the {name} was not healthy within {within_s:g} s"
        super().__init__("\n".join([said, *last_lines]))
        self.name, self.within_s = name, within_s


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    command: tuple[str, ...]
    url: str
    """Where it will listen, without a path."""

    cores: Collection[int] = frozenset()
    """Empty: any."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to this process's own, which is the stronger."""


class Child:
    """One running service. Open it with `async with`; leaving stops it."""

    def __init__(self, service: Service, hear: Hear, tasks: asyncio.TaskGroup) -> None:
        self.service = service
        self._hear = hear
        self._tasks = tasks
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)

    async def __aenter__(self) -> Self:
        output, said = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *leashed(self.service.command, self.service.cores),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env={**self.service.environment, **os.environ},
                start_new_session=True,
            )
        finally:
            os.close(said)
        self._relay = self._tasks.create_task(self._relay_lines(output))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), GRACE_S)
        except TimeoutError:
            self._hear(self.service.name, f"did not stop within {GRACE_S:g} s; killed")
        finally:
            self._kill_group()
        await self._process.wait()
        await asyncio.wait([self._relay])

    @property
    def pid(self) -> int:
        """The service's process, and the group that it leads."""
        return self._process.pid

    async def died(self) -> None:
        """Wait for the service to end; raise ServiceDied."""
        status = await self._process.wait()
        self._kill_group()
        await asyncio.wait([self._relay])
        raise ServiceDied(self.service.name, status, self.last_lines)

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _relay_lines(self, output: int) -> None:
        """Pass on lines until the last process that holds the pipe has ended.

        The pipe is ours: asyncio's own would hold up wait() while a grandchild keeps it open.
        """
        loop = asyncio.get_running_loop()
        lines = asyncio.StreamReader(limit=LINE_LIMIT_BYTES)
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), os.fdopen(output, "rb")
        )
        with closing(transport):
            while line := await _next_line(lines):
                text = line.decode(errors="replace").rstrip()
                self.last_lines.append(text)
                self._hear(self.service.name, text)


async def _next_line(lines: asyncio.StreamReader) -> bytes:
    """Return a line, or nothing at the end; what is longer than the limit is passed over."""
    while True:
        with suppress(ValueError):
            return await lines.readline()


async def keep_up(
    services: Sequence[Service],
    *,
    hear: Hear,
    meanwhile: Callable[[], Coroutine[None, None, None]],
    stopped: asyncio.Event,
) -> None:
    """Run `services`, and `meanwhile` beside them, until `stopped` is set.

    All have stopped when it returns or raises: a ServiceError, or what `meanwhile` raised.
    """
    try:
        async with asyncio.TaskGroup() as relays, AsyncExitStack() as running:
            children = [
                await running.enter_async_context(Child(service, hear, relays))
                for service in services
            ]
            await while_alive(children, stopped.wait(), meanwhile())
    except ExceptionGroup as group:
        raise _first(group) from None


async def while_alive(
    children: Sequence[Child],
    until: Awaitable[object],
    *beside: Coroutine[None, None, None],
) -> None:
    """Await `until`, and run `beside` until then, as long as all `children` live.

    Raises ServiceDied, or what `until` or `beside` raised; NeverHealthy with the words of the
    child it names.
    """
    said = {child.service.name: child.last_lines for child in children}
    try:
        async with asyncio.TaskGroup() as watching:
            watchers = [child.died() for child in children]
            tasks = [watching.create_task(work) for work in (*watchers, *beside)]
            await until
            for task in tasks:
                task.cancel()
    except ExceptionGroup as group:
        error = _first(group)
        if isinstance(error, NeverHealthy):
            error = NeverHealthy(error.name, error.within_s, said[error.name])
        raise error from None


def _first(error: Exception) -> Exception:
    """Return the first error inside a group of groups."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
