"""An event loop whose time passes at once when nothing is left to do, and the clock it shows.

Time stands still while a task can run, and while a thread works for a task: the loop waits for
the thread, however long that takes. Only then does the time of the next timer come.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from selectors import DefaultSelector, SelectorKey
from typing import Any, ClassVar, Final, TypeVar
from weakref import WeakSet

import anyio.to_thread
import pytest

T = TypeVar("T")

HANG_S: Final = 300.0
"""A test whose loop runs for so many real seconds hangs: a thread does not end, or a task polls
while no time passes."""

_REAL: Final = time.monotonic

TICK_S: Final = 1e-9
"""The clock is so late when a timer is over: rounding might leave it early, for ever."""


class Clock:
    """Shows virtual seconds. The loops of one test share it."""

    now_s = 0.0

    def __call__(self, _: object = None) -> float:
        return self.now_s


def compute(seconds: float) -> None:
    """Let so many virtual seconds pass at once, as work does in a thread or a callback."""
    clock = time.monotonic
    assert isinstance(clock, Clock)
    clock.now_s += seconds


class Gate:
    """Where a thread gets stuck until the gate opens: meanwhile no thread counts as working, so
    that time passes."""

    stuck: ClassVar[set[Gate]] = set()

    def __init__(self) -> None:
        self._is_open = threading.Event()
        self._is_open.set()

    def clear(self) -> None:
        self._is_open.clear()

    def set(self) -> None:
        self.stuck.discard(self)
        self._is_open.set()

    def wait(self) -> None:
        if not self._is_open.is_set():
            self.hold()
            assert self._is_open.wait(HANG_S)

    def hold(self) -> None:
        """Note that a thread goes no further: it waits, or has ended."""
        self.stuck.add(self)
        for loop in list(VirtualLoop.all):
            loop.wake(lambda: None)


class _Selector(DefaultSelector):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.jobs, self.ends_s = clock, 0, _REAL() + HANG_S

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        ready: Sequence[tuple[SelectorKey, int]] = super().select(0)
        if (left_s := self.ends_s - _REAL()) <= 0:
            raise RuntimeError("it hangs")
        if not ready and timeout != 0:
            if self.jobs and not Gate.stuck:
                ready = super().select(left_s)
            elif timeout is None:
                raise RuntimeError("everything waits for ever")
            else:
                self.clock.now_s += timeout + TICK_S
        return list(ready)


class VirtualLoop(asyncio.SelectorEventLoop):
    all: ClassVar[WeakSet[VirtualLoop]] = WeakSet()

    def __init__(self, clock: Clock) -> None:
        self.selector = _Selector(clock)
        super().__init__(self.selector)
        self.all.add(self)

    def time(self) -> float:
        return self.selector.clock.now_s

    def close(self) -> None:
        self.all.discard(self)
        super().close()

    def wake(self, then: Callable[[], object]) -> None:
        """Call it in the loop's thread, from any, unless the loop is closed."""
        with suppress(RuntimeError):
            self.call_soon_threadsafe(then)

    @contextmanager
    def job(self) -> Iterator[None]:
        """Let no time pass: a thread works."""
        self.selector.jobs += 1
        try:
            yield
        finally:
            self.selector.jobs -= 1

    def follow(self, work: Future[Any]) -> None:
        """Let no time pass until it is done, and those who wait for it know that."""
        job = ExitStack()
        job.enter_context(self.job())
        work.add_done_callback(lambda _: self.wake(job.close))

    async def shutdown_default_executor(self) -> None:
        with self.job():
            await super().shutdown_default_executor()


def _wrap_future(wrap: Callable[..., Any]) -> Callable[..., Any]:
    def wrap_future(
        future: Any,  # noqa: ANN401 - asyncio's
        *,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> Any:  # noqa: ANN401 - asyncio's
        waiting = wrap(future, loop=loop)
        loop = loop or asyncio.get_running_loop()
        if isinstance(loop, VirtualLoop) and isinstance(future, Future):
            loop.follow(future)
        return waiting

    return wrap_future


def _run_sync(run: Callable[..., Coroutine[Any, Any, T]]) -> Callable[..., object]:
    async def run_sync(*arguments: object, **options: object) -> T:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        with loop.job():
            return await run(*arguments, **options)

    return run_sync


@contextmanager
def virtual(clock: Clock) -> Iterator[None]:
    """Let new loops be virtual, and the clocks of the process show their time. Of
    processor time only `compute` takes some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", clock)
        patch.setattr(time, "perf_counter", clock)
        patch.setattr(time, "thread_time", clock)
        patch.setattr(time, "clock_gettime", clock)
        patch.setattr(asyncio.events, "new_event_loop", lambda: VirtualLoop(clock))
        wrap_future = _wrap_future(asyncio.wrap_future)
        patch.setattr(asyncio, "wrap_future", wrap_future)
        patch.setattr(asyncio.futures, "wrap_future", wrap_future)
        patch.setattr(anyio.to_thread, "run_sync", _run_sync(anyio.to_thread.run_sync))
        try:
            yield
        finally:
            Gate.stuck.clear()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Return what the coroutine returns, with no task left."""
    with (
        virtual(clock := Clock()),
        asyncio.Runner(loop_factory=lambda: VirtualLoop(clock)) as runner,
    ):

        async def alone() -> T:
            result = await work
            assert len(asyncio.all_tasks()) == 1
            return result

        return runner.run(alone())
