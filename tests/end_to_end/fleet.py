"""Real verifiers and edges in processes of their own, and what a client got of an answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from bench.run.services import free_port
from tests.guards import GUARD_S

ROOT = Path(__file__).parents[2]
LOST_AFTER: Final = 40
"""Characters that come before a verifier is lost."""

SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "greedy": {"temperature": 0},
    "drawn": {"temperature": 1, "seed": 11, "top_p": 0.95},
    "shaped": {"temperature": 1, "seed": 7, "min_tokens": 60, "top_logprobs": 3},
}


@dataclass
class Answer:
    text: str = ""
    finish: str = ""
    usage: object = None
    logprobs: list[object] = field(default_factory=list)
    error: dict[str, str] | None = None
    gap_s: float = field(default=0.0, compare=False)


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

    def verifier(self, url: str = "", drain_timeout_s: float = 0.0, *options: str) -> str:
        return self.start(
            "verifier", "--model", "smollm2", "--llama.threads", "1",
            "--llama.context_tokens", "4096", *options, url=url,
            PICOSPEC_VERIFIER__DRAIN_TIMEOUT_S=str(drain_timeout_s),
        )  # fmt: skip

    def edge(
        self,
        *verifiers: str,
        drain_timeout_s: float = 0.0,
        fill: str = "auto",
        module: str = "edge_agent",
        **settings: str,
    ) -> str:
        urls = [word for url in verifiers for word in ("--verifier-url", url)]
        return self.start(
            module, "--draft-model", "smollm2", "--fill", fill, *urls,
            PICOSPEC_EDGE__FAILOVER_DEADLINE_S="30",
            PICOSPEC_EDGE__DRAIN_TIMEOUT_S=str(drain_timeout_s),
            PICOSPEC_EDGE__ANSWER_CACHE_TOKENS="0",  # or what is asked again takes one pass
            **settings,
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


def ask(
    url: str,
    settings: dict[str, Any],
    lose: Callable[[], None] | None = None,
    tokens: int = 64,
) -> Answer:
    """Ask for an answer; call `lose` once, in the middle of it."""
    prompt = "Tell me a long story about a lighthouse keeper."
    body = {
        "model": "smollm2-135m", "messages": [{"role": "user", "content": prompt}],
        "stream": True, "stream_options": {"include_usage": True}, "max_tokens": tokens,
        "logprobs": "top_logprobs" in settings,
    }  # fmt: skip
    answer, last = Answer(), 0.0
    with httpx.stream(
        "POST", f"{url}/v1/chat/completions", json=body | settings, timeout=GUARD_S
    ) as r:
        assert r.status_code == 200, r.read()
        for line in r.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            answer.error = event.get("error")
            if usage := event.get("usage"):  # what a cache had depends on where it was asked
                answer.usage = {**usage, "prompt_tokens_details": None}
            for choice in event.get("choices", ()):
                answer.finish = choice["finish_reason"] or answer.finish
                if logprobs := choice.get("logprobs"):
                    answer.logprobs += logprobs["content"]
                if not (text := choice["delta"].get("content")):
                    continue
                now = time.monotonic()
                answer.gap_s = max(answer.gap_s, now - last if answer.text else 0.0)
                last, answer.text = now, answer.text + text
                if lose and len(answer.text) > LOST_AFTER:
                    lose()
                    lose = None
    return answer
