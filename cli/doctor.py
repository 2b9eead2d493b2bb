"""`picospec doctor`: what keeps this machine from running PicoSpec, and what to do about it."""

from __future__ import annotations

import importlib
import os
import socket
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.errors import ModelError
from models.store import Store

OLDEST_PYTHON = (3, 11)
PATIENCE_S = 3.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    subject: str
    ok: bool
    found: str
    remedy: str = ""
    """What to do, when not ok."""


def check_python(version: tuple[int, int]) -> Finding:
    """An interpreter older than the project's is the only bad one."""
    remedy = "install Python 3.11 or newer, then: make clean setup"
    return Finding("Python", version >= OLDEST_PYTHON, ".".join(map(str, version)), remedy)


def check_engine(module: str = "models.llama") -> Finding:
    """Import what the draft model runs on: a broken library shows here, not in a request."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        return Finding("llama.cpp", False, str(error), "make setup builds it for this machine")
    return Finding("llama.cpp", True, "can be imported")


def check_cores(count: int) -> Finding:
    """One core works too, but then the two ends take turns."""
    found = f"{count} to use" if count > 1 else "1: run the verifier on another machine"
    return Finding("cores", count > 0, found)


def check_cache(directory: Path) -> Finding:
    """Models and wheels are kept there."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        return Finding("cache", False, str(error), f"make {directory} writable")
    return Finding("cache", True, f"{directory} can be written")


def check_models(store: Store, name: str) -> Finding:
    """Read a model or pair again and compare its sha256; takes seconds a gigabyte."""
    subject = f"models of {name}"
    try:
        store.verify(name)
    except ModelError as error:
        return Finding(subject, False, str(error), f"picospec models pull {name}")
    return Finding(subject, True, "here, and as they should be")


def check_port(name: str, port: int, variable: str) -> Finding:
    """A port is good when it is free, or when a healthy service of ours has it."""
    subject = f"{name} port {port}"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if _is_healthy(f"http://127.0.0.1:{port}"):
                return Finding(subject, True, f"a healthy {name} has it")
            remedy = f"stop what holds it, or choose another with {variable}"
            return Finding(subject, False, error.strerror or str(error), remedy)
    return Finding(subject, True, "free")


def check_verifier(url: str) -> Finding:
    """A verifier on this machine need not run yet; one elsewhere must answer."""
    if _is_healthy(url):
        return Finding("verifier", True, f"{url} is healthy")
    if urlsplit(url).hostname in LOOPBACK:
        return Finding("verifier", True, "not running here; picospec up starts it")
    remedy = "check the address, the firewall, and the verifier's own log"
    return Finding("verifier", False, f"{url} is not healthy", remedy)


def _is_healthy(url: str) -> bool:
    try:
        response = httpx.get(f"{url.rstrip('/')}/health", timeout=PATIENCE_S, trust_env=False)
    except httpx.TransportError:
        return False
    return response.status_code == 200


def this_machine() -> tuple[Finding, ...]:
    """Check what does not depend on settings."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return (check_python(sys.version_info[:2]), check_engine(), check_cores(cores))


def report(findings: Iterable[Finding], console: Console) -> bool:
    """Print a table; return whether all is well."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", "what", "found", "what to do"):
        table.add_column(heading)
    well = True
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else "[red]fail[/]"
        remedy = "" if finding.ok else finding.remedy
        table.add_row(mark, escape(finding.subject), escape(finding.found), escape(remedy))
        well = well and finding.ok
    console.print(table)
    return well
