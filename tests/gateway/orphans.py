"""Processes whose parent is killed: how they are started, and whether they end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from contextlib import suppress
from pathlib import Path

import pytest

from tests.guards import GUARD_S

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
ONLY_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")


def is_alive(pid: int) -> bool:
    """A zombie counts as ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def until_gone(pid: int) -> bool:
    for _ in range(int(GUARD_S / 0.02)):
        if not is_alive(pid):
            return True
        await asyncio.sleep(0.02)
    return False


async def start(*arguments: str) -> tuple[Process, asyncio.StreamReader]:
    """Start Python; return the process, and what it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, env=ENVIRONMENT
    )
    assert process.stdout is not None
    return process, process.stdout


async def ends_with(parent: Process, pid: int) -> bool:
    """Kill the parent, and return whether the process `pid` ends by itself then."""
    parent.kill()
    gone = await until_gone(pid)
    if not gone:
        os.kill(pid, signal.SIGKILL)  # or its pipe would hold up the wait
    await parent.communicate()  # to the end of its pipe, or its transport stays open
    return gone
