"""What a core test may not do: connect a socket, start a process, sleep by the wall clock.

A core test runs on a virtual clock (virtual_time). One that needs real time, sockets or
processes is a system test: its file or folder stands in SYSTEM, or it is marked itself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).parent

SYSTEM: Final = (
    # They start services and processes.
    "deploy",
    "packaging",
    "page",
    "edge_agent/test_proxies.py",
    "edge_agent/test_starting.py",
    "end_to_end/test_tls.py",
    "gateway/test_processes.py",
    "hostile/test_templates.py",
    "hostile/test_tokenizers.py",
    "hostile/test_shipped_proxies.py",
    "hostile/test_verifier.py",
    "local_models/grammars/test_compiler.py",
    "picospec/test_systems.py",
    "verifier/test_process.py",
    "verifier/vllm_target/test_children.py",
    # They compute for long.
    "bench",
    "end_to_end/test_adjusted_distribution.py",
    # They connect sockets on this machine.
    "picospec/test_commands.py",
    "picospec/test_link.py",
    "edge_agent/test_own_api.py",
    "edge_agent/test_proxy.py",
    "edge_agent/test_rendering.py",
    "gateway/test_background.py",
    "gateway/test_server.py",
    "hostile/test_connections.py",
    "hostile/test_hub.py",
    "hostile/test_proxy.py",
    "local_models/test_hub.py",
)
"""The files and folders of system tests."""

GUARD_S: Final = 300.0
"""The only limit of system tests against hangs; it says nothing of speed."""

OTHERS: Final = ("models", "vllm", "clients", "faults", "images")
"""The marks of tests that are neither."""

_FORBIDDEN: Final = {
    "socket.connect": "connects a socket",
    "socket.bind": "binds a socket",
    "subprocess.Popen": "starts a process",
    "os.fork": "starts a process",
    "os.posix_spawn": "starts a process",
}

_on: list[list[str]] = []
"""Holds what the running core test did, if one runs."""


def _watch(event: str, _: tuple[object, ...]) -> None:
    if _on and event in _FORBIDDEN:
        _fail(_FORBIDDEN[event])


def _fail(what: str) -> None:
    what = f"a core test {what}: tests/guards.py says what to do"
    _on[-1].append(what)
    pytest.fail(what)


def _sleep(seconds: float) -> None:
    if seconds > 0:
        _fail("sleeps by the wall clock")


sys.addaudithook(_watch)


@contextmanager
def guarded() -> Iterator[list[str]]:
    """Fail at what a core test may not do. Yields what it did, in whatever thread."""
    deeds: list[str] = []
    _on.append(deeds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", _sleep)
        try:
            yield deeds
        finally:
            _on.pop()


def is_listed(item: pytest.Item) -> bool:
    return any(item.path.is_relative_to(TESTS / each) for each in SYSTEM)


def is_core(item: pytest.Item) -> bool:
    marks = ("system", *OTHERS)
    return not is_listed(item) and not any(item.get_closest_marker(mark) for mark in marks)
