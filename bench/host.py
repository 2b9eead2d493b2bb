"""Describes the origin of a figure: host and commit; measures processor time."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path

import msgspec

BUSY_LOAD = 0.5
"""A host with a higher one-minute load before the run counts as busy, and its figures as
unreliable."""


class Host(msgspec.Struct, frozen=True):
    processor: str
    cores: int
    memory_gib: float
    system: str
    python: str
    load_before: float
    """The one-minute load average had this value before anything was started."""

    @property
    def busy(self) -> bool:
        return self.load_before > BUSY_LOAD


def this_host() -> Host:
    """Return a description of the machine as it is now."""
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Host(
        _processor(), os.cpu_count() or 1, round(memory_bytes / 2**30, 1), platform.platform(),
        platform.python_version(), round(os.getloadavg()[0], 2),
    )  # fmt: skip


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """Return the commit of this code, with + if files differ from it; "unknown" without git."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        return name + "+" * bool(_git("status", "--porcelain", "-uno"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()


def processor_s(group: int) -> float:
    """Return the processor seconds of the living processes of a group; 0 if not on Linux."""
    return sum(processor_s_by_title(group).values())


def processor_s_by_title(group: int) -> dict[str, float]:
    """Return the processor seconds of the living processes of a group, by their titles; those
    with the same title together. A process that sets no title has its command as one."""
    spent_s: dict[str, float] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            fields = stat.read_text().rpartition(")")[2].split()  # proc(5), from `state` on
            if int(fields[2]) == group:
                title = stat.with_name("cmdline").read_text().replace("\0", " ").strip()
                ticks = int(fields[11]) + int(fields[12])
                spent_s[title] = spent_s.get(title, 0.0) + ticks / os.sysconf("SC_CLK_TCK")
    return spent_s


def stolen_s(stat: Path = Path("/proc/stat")) -> float:
    """Return the processor seconds, over all cores since boot, that the host took from this
    virtual machine (proc(5): steal); 0 if the kernel does not count them."""
    with suppress(OSError, ValueError, IndexError):
        return int(stat.read_text().split(maxsplit=9)[8]) / os.sysconf("SC_CLK_TCK")
    return 0.0
