"""Work such as reading prompts takes turns in a few places, fairly among owners, and
minutes-long work gets its own thread.

* Owners are served in turn, however much work of each owner waits.
* No owner has all places, unless there is only one, so that another owner finds one at once.
* A place is taken until the work has ended, even if nobody waits for its result any more.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from gateway.errors import Overloaded

T = TypeVar("T")


async def in_own_thread(function: Callable[[], T], name: str) -> T:
    """Await a function that may take minutes, as a download does, in a daemon thread of its
    own: it holds up neither short work in the loop's shared threads nor the end of the process.
    The thread goes on if nobody waits any more."""
    future: Future[T] = Future()

    def run() -> None:
        future.set_running_or_notify_cancel()  # nobody can cancel it from now on
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name=name).start()
    return await asyncio.wrap_future(future)


class Turns:
    """max_running: limit of running work. max_waiting: limit of waiting work of one owner."""

    def __init__(self, max_running: int, max_waiting: int, what: str) -> None:
        """what: description of the work for errors, such as "prompts wait to be read"."""
        self._free_places = max_running
        self._max_running_each = max(1, max_running - 1)
        self._max_waiting = max_waiting
        self._what = what
        self._running: Counter[object] = Counter()
        self._waiting: dict[object, deque[asyncio.Future[None]]] = {}
        """Maps each owner to its waiting work; the owner that is served next comes first."""

    @asynccontextmanager
    async def take(self, owner: object) -> AsyncGenerator[None]:
        """Hold a place. Raises Overloaded if too much work of this owner waits already."""
        await self._begin(owner)
        try:
            yield
        finally:
            self._end(owner)

    async def _begin(self, owner: object) -> None:
        queue = self._waiting.setdefault(owner, deque())
        if len(queue) >= self._max_waiting:
            raise Overloaded(f"{self._max_waiting} {self._what}")
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the place was given at the same moment
                self._end(owner)
            elif turn in (queue := self._waiting.get(owner, deque())):
                queue.remove(turn)
                if not queue:
                    del self._waiting[owner]
            raise

    def _end(self, owner: object) -> None:
        self._free_places += 1
        self._running[owner] -= 1
        if not self._running[owner]:
            del self._running[owner]
        self._serve()

    def _serve(self) -> None:
        """Give the free places to the owners that are next."""
        while self._free_places:
            for owner in self._waiting:
                if self._running[owner] < self._max_running_each:
                    break
            else:
                return
            queue = self._waiting.pop(owner)
            turn = queue.popleft()
            if queue:
                self._waiting[owner] = queue  # last in the order
            if not turn.done():  # otherwise the waiting task has been cancelled
                turn.set_result(None)
                self._free_places -= 1
                self._running[owner] += 1


class ThreadTurns(Turns):
    """Runs work in turns, in one thread for each place."""

    def __init__(self, threads: int, max_waiting: int, what: str) -> None:
        super().__init__(threads, max_waiting, what)
        self._threads = ThreadPoolExecutor(threads)

    async def run(self, owner: object, work: Callable[[], T]) -> T:
        """Return what `work` returns in a thread; its place is free once the thread is.

        Raises Overloaded, or what `work` raises.
        """
        await self._begin(owner)
        loop = asyncio.get_running_loop()

        def ended(_: Future[T]) -> None:
            with suppress(RuntimeError):  # the loop has ended, and with it all turns
                loop.call_soon_threadsafe(self._end, owner)

        try:
            running = self._threads.submit(work)
        except BaseException:
            self._end(owner)
            raise
        running.add_done_callback(ended)
        return await asyncio.wrap_future(running)
