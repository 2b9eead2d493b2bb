"""Finds the CPU cores that this process may use, and divides them between the two ends.

A core with hyper-threading appears as two CPUs. Each thread of llama.cpp keeps a core busy,
so each core gets one thread, and the ends share cores and not CPUs: two threads on one core
would slow each other down. Only Linux reports the CPUs that a process may use, and their
cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Final

from gateway.system import usable_cpus

Core = frozenset[int]
"""A core is the set of its CPUs."""

_TOPOLOGY: Final = Path("/sys/devices/system/cpu")
_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True, slots=True)
class Pins:
    """Each end may use these CPUs; empty means any."""

    verifier: frozenset[int] = frozenset()
    edge: frozenset[int] = frozenset()


def cores_of(cpus: Collection[int], topology: Path = _TOPOLOGY) -> list[Core]:
    """Return CPUs grouped by core, in the order of each core's first CPU."""
    cores = {_siblings(cpu, topology) & frozenset(cpus) for cpu in cpus}
    return sorted(cores, key=min)


def compute_threads() -> int:
    """Return how many threads of llama.cpp this process has room for: one for each core.

    A container's limit on processor time applies too. On macOS the slow cores are left out,
    because every thread waits for the slowest one.
    """
    if sys.platform == "darwin":
        return _fast_cores_of_macos()
    return max(1, min(len(cores_of(usable_cpus())), _quota_cpus(_QUOTA)))


def share(cores: Sequence[Core]) -> Pins:
    """Give the verifier the first half of the cores, and the edge the rest.

    The CPUs of a single core are shared in the same way; a single CPU stays unpinned.
    """
    if len(cores) == 1:
        cores = [frozenset({cpu}) for cpu in sorted(cores[0])]
    if len(cores) < 2:
        return Pins()
    middle = (len(cores) + 1) // 2
    return Pins(frozenset().union(*cores[:middle]), frozenset().union(*cores[middle:]))


def parse_pins(text: str, available: Collection[int]) -> Pins:
    """Parse "VERIFIER:EDGE", each a list such as 0,2-3; "none" pins nothing.

    Raises ValueError for another form, or a CPU that is not in `available`.
    """
    if text == "none":
        return Pins()
    verifier, colon, edge = text.partition(":")
    if not colon:
        raise ValueError(f'pins must read "VERIFIER:EDGE", such as 0:1, or none; not {text!r}')
    pins = Pins(_cpus(verifier), _cpus(edge))
    missing = sorted((pins.verifier | pins.edge) - set(available))
    if missing:
        may = sorted(available)
        raise ValueError(f"this process may not use cores {missing}; it may use {may}")
    return pins


def _siblings(cpu: int, topology: Path) -> Core:
    """Return the CPUs of a CPU's core; only the CPU itself if the system does not report it."""
    try:
        text = (topology / f"cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return frozenset({cpu})
    return _cpus(text.strip()) | {cpu}


def _quota_cpus(file: Path) -> int:
    """Return the number of CPUs whose time a container may use; a large one without a limit."""
    try:
        quota, period = file.read_text().split()
        return ceil(int(quota) / int(period))
    except (OSError, ValueError):  # there is no such file, or its quota is "max"
        return 1 << 20


def _fast_cores_of_macos() -> int:
    for name in ("hw.perflevel0.physicalcpu", "hw.physicalcpu"):
        run = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5)
        if run.stdout.strip().isdecimal():
            return int(run.stdout)
    return os.cpu_count() or 1


def _cpus(listed: str) -> frozenset[int]:
    """Parse a list such as 0,2-3; an empty text means any."""
    cpus: set[int] = set()
    for part in filter(None, listed.split(",")):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"not a list of cores: {listed!r}")
        cpus.update(range(int(first), int(last if dash else first) + 1))
    return frozenset(cpus)
