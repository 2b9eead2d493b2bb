"""An event loop whose time passes at once when nothing is left to do."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from selectors import DefaultSelector, SelectorKey
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(DefaultSelector):
    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        ready: Sequence[tuple[SelectorKey, int]] = super().select(0)
        if timeout is None and not ready:
            raise RuntimeError("everything waits for ever")
        self.now_s += timeout or 0.0
        return list(ready)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.selector = _Selector()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.now_s


def run(work: Coroutine[Any, Any, T]) -> T:
    """Return what the coroutine returns, with no task left."""
    with asyncio.Runner(loop_factory=_Loop) as runner:

        async def alone() -> T:
            result = await work
            assert len(asyncio.all_tasks()) == 1
            return result

        return runner.run(alone())
