"""This module does what differs between operating systems, with a plain answer where one lacks
something.

Linux has all of this. LACKS says what macOS and Windows lack, and `picospec doctor` shows it.
This is the only module for which it matters under which system an edge, the command or the
gateway runs. Services and confined processes begin with it; it imports nothing heavy.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    import asyncio

if sys.platform == "win32":
    pass
else:
    import resource

_LINUX_ALONE: Final = (
    "services of `picospec up` outlive one that is killed outright",
    "no cores are pinned",
    "silent connections with TLS are not cut early",
)
LACKS: Final[Mapping[str, Sequence[str]]] = {
    "darwin": _LINUX_ALONE,
    "win32": (
        *_LINUX_ALONE,
        "templates, tokenizers and grammars are tried without a limit on memory",
        "a service is stopped without draining",
        "the store of models needs symbolic links, which the Developer Mode allows",
    ),
}
"""Maps a system's `sys.platform` to what PicoSpec does without there."""

STOP_AT_ONCE: Final = getattr(signal, "SIGUSR1", signal.SIGINT)
"""This signal makes a worker stop without waiting for its running work."""

STOPS: Final = tuple(
    number
    for number in signal.Signals
    if number.name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
)
"""Each of these signals stops a command that runs in front."""

INTERRUPTS: Final = tuple(
    number for number in signal.Signals if number.name in ("SIGINT", "SIGQUIT")
)
"""A terminal sends these signals at Ctrl-C and Ctrl-backslash to all its processes."""

PARENT_POLL_S: Final = 0.5
"""The parent is checked every PARENT_POLL_S seconds: a process may outlive it by as long."""

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def become(command: Sequence[str]) -> NoReturn:
    """Run a command in place of this process. Windows starts another process, for which this
    one waits, because a shell there waits for the first one alone."""
    if sys.platform == "win32":
        import subprocess

        for number in INTERRUPTS:
            signal.signal(number, signal.SIG_IGN)  # the other process gets them too
        sys.exit(subprocess.call(command))
    else:
        os.execvp(command[0], list(command))


def end_with_parent_thread(number: signal.Signals) -> None:
    """Let Linux send this process a signal when the thread that started it ends."""
    if sys.platform == "linux":
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def wait_for_end_of_parent() -> None:
    """Return when the process that started this one is gone."""
    import multiprocessing  # slow, and not needed before a service starts

    # multiprocessing passed the parent's id on, so it is right even if the parent is gone
    parent = multiprocessing.parent_process()
    if sys.platform == "win32":  # there an orphan keeps its parent's id
        while parent is None:
            time.sleep(3600.0)
        return parent.join()
    parent_id = os.getppid() if parent is None else parent.pid
    while os.getppid() == parent_id:
        time.sleep(PARENT_POLL_S)


def kill_group(leader: int) -> None:
    """Kill all processes of a group. Windows has none: what a service started there ends by
    `wait_for_end_of_parent`."""
    if sys.platform != "win32":
        with suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)


@contextmanager
def handled_signals(
    loop: asyncio.AbstractEventLoop, handlers: Mapping[signal.Signals, Callable[[], object]]
) -> Iterator[None]:
    """Call a handler in the loop whenever its signal comes, until the body ends. Windows' loop
    has no handlers of signals, so the process's own pass the call on."""
    if sys.platform == "win32":
        before = {
            number: signal.signal(number, lambda *_, call=call: loop.call_soon_threadsafe(call))
            for number, call in handlers.items()
        }
    else:
        for number, call in handlers.items():
            loop.add_signal_handler(number, call)
    try:
        yield
    finally:
        for number in handlers:
            if sys.platform == "win32":
                signal.signal(number, before[number])
            else:
                loop.remove_signal_handler(number)


def usable_cpus() -> frozenset[int]:
    """Return the CPUs that this process may use."""
    if sys.platform == "linux":
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def pin(cpus: Collection[int]) -> None:
    """Let this process run on these CPUs alone, if there are any."""
    if cpus and sys.platform == "linux":
        os.sched_setaffinity(0, cpus)


def descriptors(most: int) -> tuple[int, int]:
    """Return how many descriptors this process has, and how many it may ask for; each at most
    `most`."""
    if sys.platform == "win32":  # handles of sockets have no limit
        soft, hard = most, most
    else:
        soft, hard = (
            most if limit == resource.RLIM_INFINITY else min(limit, most)
            for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
        )
    return soft, hard


def raise_descriptors(count: int) -> None:
    """Let this process have more descriptors. Raises OSError or ValueError."""
    if sys.platform != "win32":
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def limit_memory(max_bytes: int) -> None:
    """Limit the address space of this process, if the system supports that."""
    if sys.platform != "win32":
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))


CPU_LIMIT_STATUS: Final = -getattr(signal, "SIGPROF", signal.SIGINT)
"""A process that `limited_cpu` has ended has this status."""


@contextmanager
def limited_cpu(max_s: float) -> Iterator[None]:
    """Make the system end this process if the body takes more processor time. On Windows only
    the limit of whoever waits for the process applies."""
    if sys.platform == "win32":
        yield
        return
    signal.setitimer(signal.ITIMER_PROF, max_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def drop_mapped(path: Path) -> None:
    """Let go of the pages that this process has mapped of a file: they are read again when they
    are used. Only Linux tells where they are."""
    if sys.platform != "linux":
        return
    import ctypes
    import mmap

    advise = ctypes.CDLL(None).madvise
    advise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    name = os.path.realpath(path)
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, mapped = line.split(maxsplit=5)
        if mapped == name:
            start, end = (int(each, 16) for each in addresses.split("-"))
            advise(start, end - start, mmap.MADV_DONTNEED)


def return_freed_memory() -> None:
    """Give the system what this process has freed; glibc would keep it for later."""
    if sys.platform == "linux":
        import ctypes

        with suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def physical_memory_bytes() -> int:
    """Return how much memory the machine has."""
    if sys.platform != "win32":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    import ctypes

    class Status(ctypes.Structure):  # MEMORYSTATUSEX of sysinfoapi.h
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((f"bytes_{index}", ctypes.c_ulonglong) for index in range(7)),
        )

    status = Status(length=ctypes.sizeof(Status))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise ctypes.WinError()
    return int(status.bytes_0)


def now_with_sleep() -> float:
    """Return the seconds of a clock that goes on while the machine is suspended.

    `time.monotonic` stops then on Linux and macOS, but not on Windows. macOS's own
    CLOCK_MONOTONIC goes on: clock_gettime(3) there.
    """
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        return time.clock_gettime(time.CLOCK_MONOTONIC)
    return time.monotonic()


_INFO: Final = struct.Struct("@B51xI72xQ")
"""Reads tcp_info of linux/tcp.h: tcpi_state, tcpi_last_data_recv (ms), tcpi_bytes_received."""

KNOWS_CONNECTIONS: Final = sys.platform == "linux"
"""`connections` yields something here."""


def connections() -> Iterator[tuple[socket.socket, int, int]]:
    """Yield each TCP connection of this process, for how many milliseconds nothing has come on
    it, and how many bytes have come at all. A connection is closed after its turn.

    Raises OSError if there is no descriptor left.
    """
    if sys.platform != "linux":
        return
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError), _duplicate(int(descriptor)) as connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
            state, silent_ms, received_bytes = _INFO.unpack(info)
            if state == 1:  # TCP_ESTABLISHED of Linux's net/tcp_states.h
                yield connection, silent_ms, received_bytes


def _duplicate(descriptor: int) -> socket.socket:
    """Return a socket with a descriptor of its own, because the server may close its descriptor
    meanwhile and the number be reused. Raises OSError if the descriptor is not a socket."""
    duplicate = os.dup(descriptor)
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, duplicate)
    except OSError:
        os.close(duplicate)
        raise
