"""Checks this machine: what is installed, its cores, the store and the ports."""

from __future__ import annotations

import platform
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx

from gateway.hosting.cores import compute_threads
from gateway.system import LACKS
from local_models.errors import CannotOpen, ModelError, NoLlama, NotPulled
from local_models.llama_cpp.context_length import free_bytes
from local_models.llama_cpp.footprint import Footprint, gigabytes
from local_models.llama_cpp.library import INSTALL, check_llama
from local_models.llama_cpp.model import Model
from local_models.store import Store
from picospec.command_parts import HOST
from picospec.findings import Finding
from verifier.llama_target.placing import Plan
from verifier.settings import VerifierSettings


def check_engine(check: Callable[[], None] = check_llama, *, needed: bool = True) -> Finding:
    """Load llama.cpp, so that a broken library shows here and not in a request.

    needed: True if the check fails without llama.cpp.
    """
    try:
        check()
    except NoLlama as error:
        return Finding(
            "llama.cpp", not needed, str(error), f"{INSTALL}; it needs a C++ compiler"
        )
    return Finding("llama.cpp", True, "can be loaded")


def check_system(name: str = sys.platform) -> Finding:
    """Name the operating system, and what PicoSpec does without on it."""
    lacks = "; ".join(LACKS.get(name, ()))
    finding = f"{platform.system()} {platform.machine()}"
    return Finding("system", True, f"{finding}; {lacks}" if lacks else finding)


def check_cores() -> Finding:
    """Count the cores. One is enough, but then the two ends take turns on it."""
    count = compute_threads()
    finding = f"{count} to use" if count > 1 else "1: run the verifier on another machine"
    return Finding("cores", True, finding)


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


def check_memory(service: str, needed: Footprint) -> Finding:
    """Warn if a service with its model takes more memory than is free."""
    free = free_bytes()
    return Finding(
        f"{service} memory",
        True,
        f"takes {needed}; {gigabytes(free)} are free",
        "free some memory, or take fewer slots or a shorter context_tokens",
        warns=needed.total > free,
    )


def check_verifier_memory(
    store: Store, reference: str, settings: VerifierSettings
) -> list[Finding]:
    """Compare what a llama.cpp verifier of a model takes on the processor with what is free.
    Nothing is found about one that is not here, or computed by a device."""
    try:
        path, plan = store.find(reference, "target").path, Plan.of(settings.llama)
    except ModelError:
        return []
    if settings.target != "llama" or plan.devices:
        return []
    try:
        with closing(Model(path, vocabulary_only=True)) as model:
            needed = plan.footprint(model, settings.limits.max_verify + 1)
    except CannotOpen as error:
        return [
            Finding("verifier memory", False, str(error), "change the setting that it names")
        ]
    return [check_memory("verifier", needed)]


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
        response = httpx.get(f"{url.rstrip('/')}/health", timeout=3.0, trust_env=False)
    except httpx.TransportError:
        return False
    return response.status_code == 200
