"""Calls what recurses as deep as its input is long, on a stack that is large enough for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

MIN_BYTES: Final = 1 << 20
"""The smallest stack: what the interpreter itself needs of it is a fraction."""

PAGE_BYTES: Final = 1 << 16
"""Sizes of stacks are multiples of it, on any system."""

T = TypeVar("T")

_setting: Final = threading.Lock()
"""The size of new threads' stacks is a setting of the whole process."""


def on_stack(most_bytes: int, work: Callable[[], T]) -> T:
    """Return what `work` returns, in a thread whose stack has so many bytes; what is used of
    them takes memory. Raises ValueError where there is no room for the stack."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, name="deep-stack")
    try:
        with _setting:
            usual = threading.stack_size(MIN_BYTES + -(-most_bytes // PAGE_BYTES) * PAGE_BYTES)
            try:
                thread.start()
            finally:
                threading.stack_size(usual)
    except RuntimeError as error:
        raise ValueError(f"no stack of {most_bytes} bytes: {error}") from error
    return done.result()
