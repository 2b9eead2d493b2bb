"""`python other_system.py SYSTEM MODULE ARGUMENTS...` runs a module of the project as if under
another system: our own packages, and they alone, miss what that system lacks."""

from __future__ import annotations

import builtins
import ctypes
import runpy
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

ROOMS = ("edge_agent", "gateway", "local_models", "picospec", "speculation", "verifier")

LINUX_ONLY = {
    "os": "memfd_create pidfd_open sched_getaffinity sched_setaffinity splice",
    "socket": "TCP_INFO TCP_USER_TIMEOUT SO_PEERCRED",
    "time": "CLOCK_BOOTTIME",
}
POSIX_ONLY = {
    "os": "chown fchmod fork getgid getloadavg getpgid getuid killpg setsid sysconf uname",
    "signal": "ITIMER_PROF SIGHUP SIGKILL SIGPROF SIGQUIT SIGUSR1 SIGUSR2 setitimer",
    "socket": "AF_UNIX SO_REUSEPORT",
    "time": "clock_gettime CLOCK_MONOTONIC",
}
HIDDEN = {
    "darwin": set[str](),
    "win32": {"fcntl", "resource", "termios", "pwd", "grp", "readline"},
}


class Lacking(ModuleType):
    """A module without some of its names, or with others in their place."""

    def __init__(self, module: ModuleType, absent: set[str], **replaced: object) -> None:
        super().__init__(module.__name__)
        self.__dict__.update({**vars(module), **replaced})
        for name in absent & vars(self).keys():
            delattr(self, name)


def _fill(status: Any) -> int:  # noqa: ANN401
    status._obj.bytes_0 = 8 << 30
    return 1


def imitate(system: str) -> None:
    imported, lacking = builtins.__import__, dict[str, ModuleType]()
    for name in {*LINUX_ONLY, *POSIX_ONLY}:
        absent = LINUX_ONLY.get(name, "") + " " + POSIX_ONLY.get(name, "") * (system == "win32")
        lacking[name] = Lacking(imported(name), {*absent.split()})
    lacking["msvcrt"] = ModuleType("msvcrt")
    kernel = SimpleNamespace(GlobalMemoryStatusEx=_fill)
    lacking["ctypes"] = Lacking(ctypes, set(), windll=SimpleNamespace(kernel32=kernel))
    lacking["sys"] = Lacking(sys, set(), platform=system)

    def import_(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> ModuleType:
        where = globals or {}
        if str(where.get("__package__") or where.get("__name__")).split(".")[0] in ROOMS:
            if name in HIDDEN[system]:
                raise ModuleNotFoundError(f"{system} has no module {name!r}", name=name)
            if name in lacking:
                return lacking[name]
        return imported(name, globals, locals, fromlist, level)

    builtins.__import__ = import_


if __name__ == "__main__":
    _, system, module, *sys.argv[1:] = sys.argv
    imitate(system)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
