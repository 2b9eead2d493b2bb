"""Real verifiers and edges in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from bench.run.services import free_port
from tests.guards import GUARD_S

ROOT = Path(__file__).parents[2]


class Fleet:
    """Verifiers and an edge that uses them, each a process group of its own."""

    def __init__(self) -> None:
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, module: str, *options: str, url: str = "", **settings: str) -> str:
        port = url.rsplit(":", 1)[1] if url else str(free_port())
        url = url or f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", module, "--port", port, *options]
        environment = {k: v for k, v in os.environ.items() if k != "PICOSPEC_API_KEYS"}
        self.processes[url] = subprocess.Popen(
            command, cwd=ROOT, env=environment | settings, stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, process_group=0,
        )  # fmt: skip
        return url

    def verifier(self, url: str = "") -> str:
        return self.start(
            "verifier", "--model", "smollm2", "--llama.threads", "1",
            "--llama.context_tokens", "4096", url=url, PICOSPEC_VERIFIER__DRAIN_TIMEOUT_S="0",
        )  # fmt: skip

    def edge(self, verifier: str, *, fill: str = "auto") -> str:
        return self.start(
            "edge_agent", "--draft-model", "smollm2", "--fill", fill,
            "--verifier-url", verifier,
            PICOSPEC_EDGE__FAILOVER_DEADLINE_S="30",
            PICOSPEC_EDGE__DRAIN_TIMEOUT_S="0",
            PICOSPEC_EDGE__ANSWER_CACHE_TOKENS="0",  # or what is asked again takes one pass
        )  # fmt: skip

    def signal(self, url: str, number: int) -> None:
        os.killpg(self.processes[url].pid, number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self.processes[url].wait()

    def until_ready(self, *urls: str) -> None:
        deadline = time.monotonic() + GUARD_S
        for url in urls:
            while not _is_ready(url):
                assert time.monotonic() < deadline, url
                time.sleep(0.1)

    def end(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=GUARD_S).status_code == 200
    except httpx.TransportError:
        return False


def gauge(url: str, name: str) -> dict[str, float]:
    """Return a metric's values by their labels."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    found = [
        line.rsplit(" ", 1) for line in lines if line.startswith((f"{name} ", f"{name}{{"))
    ]
    return {label.removeprefix(name): float(value) for label, value in found}
