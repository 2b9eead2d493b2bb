"""`picospec doctor`: checks what PicoSpec needs on this machine, and advises on what fails."""

from __future__ import annotations

import importlib
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.errors import ModelError
from models.store import Store

OLDEST_PYTHON: Final = (3, 11)
TIMEOUT_S: Final = 3.0
HOST: Final = "127.0.0.1"
LOOPBACK: Final = (HOST, "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    subject: str
    ok: bool
    found: str
    remedy: str = ""
    """What to do, when not ok."""


def check_python(version: tuple[int, int]) -> Finding:
    """Check that the interpreter is not older than the project's oldest."""
    remedy = "install Python 3.11 or newer, then: make clean setup"
    return Finding("Python", version >= OLDEST_PYTHON, ".".join(map(str, version)), remedy)


def check_engine(module: str = "models.llama") -> Finding:
    """Import llama.cpp, so that a broken library shows here and not in a request."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        return Finding("llama.cpp", False, str(error), "make setup builds it for this machine")
    return Finding("llama.cpp", True, "can be imported")


def check_cores() -> Finding:
    """Count the cores. One is enough, but then the two ends take turns on it."""
    count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
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


def check_models(store: Store, name: str) -> Finding:
    """Compare the sha256 of a model's or pair's files, which takes seconds a gigabyte."""
    subject = f"models of {name}"
    try:
        store.verify(name)
    except ModelError as error:
        return Finding(subject, False, str(error), f"picospec models pull {name}")
    return Finding(subject, True, "here, and as they should be")


def check_port(name: str, port: int, variable: str) -> Finding:
    """Check that a port is free, or that a healthy service of ours listens on it."""
    subject = f"{name} port {port}"
    if (reason := why_not_free(port)) is None:
        return Finding(subject, True, "free")
    if _is_healthy(f"http://{HOST}:{port}"):
        return Finding(subject, True, f"a healthy {name} has it")
    remedy = f"stop what holds it, or choose another with {variable}"
    return Finding(subject, False, reason, remedy)


def why_not_free(port: int) -> str | None:
    """Return the reason why nothing can listen on a port of this machine, or None."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def check_verifier(url: str) -> Finding:
    """Check that a verifier elsewhere is healthy; one on this machine need not run yet."""
    if _is_healthy(url):
        return Finding("verifier", True, f"{url} is healthy")
    if urlsplit(url).hostname in LOOPBACK:
        return Finding("verifier", True, "not running here; picospec up starts it")
    remedy = "check the address, the firewall, and the verifier's own log"
    return Finding("verifier", False, f"{url} is not healthy", remedy)


def _is_healthy(url: str) -> bool:
    try:
        response = httpx.get(f"{url.rstrip('/')}/health", timeout=TIMEOUT_S, trust_env=False)
    except httpx.TransportError:
        return False
    return response.status_code == 200


def report(findings: Sequence[Finding], console: Console) -> bool:
    """Print a table of the findings; return whether all are ok."""
    table = Table("", "what", "found", "what to do", box=None, pad_edge=False)
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else "[red]fail[/]"
        remedy = "" if finding.ok else finding.remedy
        table.add_row(mark, escape(finding.subject), escape(finding.found), escape(remedy))
    console.print(table)
    return all(finding.ok for finding in findings)
