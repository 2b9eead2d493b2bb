"""Checks this machine: what is installed, its cores, the store and the ports."""

from __future__ import annotations

import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx

from picospec.cli.doctor.finding import Finding
from picospec.cli.options import HOST
from picospec.gateway.hosting.limits import compute_threads
from picospec.models.errors import ModelError, NoLlama, NotPulled
from picospec.models.llama_cpp.library import INSTALL, check_llama
from picospec.models.store import Store

TIMEOUT_S: Final = 3.0


def check_engine(check: Callable[[], None] = check_llama, *, needed: bool = True) -> Finding:
    """Load llama.cpp, so that a broken library shows here and not in a request.

    needed: True if the check fails without llama.cpp.
    """
    try:
        check()
    except NoLlama as error:
        remedy = f"{INSTALL}, or in PicoSpec's folder: make setup"
        return Finding("llama.cpp", not needed, str(error), remedy)
    return Finding("llama.cpp", True, "can be loaded")


def gpu_here() -> tuple[str, str] | None:
    """Return the kind of this machine's GPU, and the option that builds llama.cpp for it."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "Metal", "-DGGML_METAL=on"
    if shutil.which("nvidia-smi"):
        return "CUDA", "-DGGML_CUDA=on"
    return ("ROCm", "-DGGML_HIP=on") if Path("/dev/kfd").exists() else None


def check_gpu(gpu: tuple[str, str] | None, supported: bool) -> Finding:
    """Check that llama.cpp was built for the GPU, if there is one: drafts are faster there."""
    if gpu is None:
        return Finding("GPU", True, "none; the draft model runs on the CPU")
    kind, option = gpu
    if supported:
        return Finding("GPU", True, f"{kind}; the draft model runs on it (gpu_layers)")
    found = f"{kind}, which this build of llama.cpp does not use"
    return Finding("GPU", False, found, f'CMAKE_ARGS="{option}" make clean setup')


def check_cores() -> Finding:
    """Count the cores. One is enough, but then the two ends take turns on it."""
    count = compute_threads()
    found = f"{count} to use" if count > 1 else "1: run the verifier on another machine"
    return Finding("cores", True, found)


def check_cache(directory: Path) -> Finding:
    """Check that models and wheels can be written to the cache."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        return Finding("cache", False, str(error), f"make {directory} writable")
    return Finding("cache", True, f"{directory} can be written")


def check_models(store: Store, reference: str, *, needed: bool = True) -> Finding:
    """Compare the sha256 of a model's or pair's files, which takes seconds per gigabyte.

    needed: True if the check fails without the files.
    """
    subject = f"models of {reference}"
    try:
        store.verify(reference)
    except ModelError as error:
        if isinstance(error, NotPulled) and not needed:
            return Finding(subject, True, "not here; a service that runs them fetches them")
        return Finding(subject, False, str(error), f"picospec models pull {reference}")
    return Finding(subject, True, "here, and as they should be")


def check_port(name: str, port: int, variable: str) -> Finding:
    """Check that a port is free, or that a healthy service of ours listens on it."""
    subject = f"{name} port {port}"
    if (reason := bind_error(port)) is None:
        return Finding(subject, True, "free")
    if _is_healthy(f"http://{HOST}:{port}"):
        return Finding(subject, True, f"a healthy {name} has it")
    remedy = f"stop what holds it, or choose another with {variable}"
    return Finding(subject, False, reason, remedy)


def bind_error(port: int) -> str | None:
    """Return the reason why nothing can listen on a port of this machine, if any."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def _is_healthy(url: str) -> bool:
    try:
        response = httpx.get(f"{url.rstrip('/')}/health", timeout=TIMEOUT_S, trust_env=False)
    except httpx.TransportError:
        return False
    return response.status_code == 200
