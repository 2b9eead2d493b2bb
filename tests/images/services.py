"""What the tests of images ask of services, and a verifier on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from tests.images.docker import ROOT, Container

BODY = {
    "messages": [{"role": "user", "content": "Count from one to twenty."}],
    "max_tokens": 48, "temperature": 0,
}  # fmt: skip


@contextmanager
def verifier(port: int, key: str) -> Iterator[str]:
    """Run a verifier from the working tree, with SmolLM2; yield its URL once it is ready."""
    command = [
        sys.executable,
        "-m",
        "verifier",
        "--model",
        "smollm2",
        "--port",
        str(port),
    ]
    running = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PICOSPEC_API_KEYS": key},
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        until(url, "/ready", 200, 90)
        yield url
    finally:
        running.terminate()
        running.wait(30)


def until(
    url: str, path: str, status: int, within_s: float, container: Container | None = None
) -> httpx.Response:
    """Wait until a path is answered with this status; fail with the container's log."""
    deadline, answer = time.monotonic() + within_s, None
    while time.monotonic() < deadline and (not container or container.process.poll() is None):
        try:
            answer = httpx.get(url + path, timeout=5, verify=False)
        except httpx.TransportError:
            pass
        else:
            if answer.status_code == status:
                return answer
        time.sleep(0.2)
    log = container.log.read_text() if container else ""
    raise AssertionError(f"{url}{path}: {answer and answer.text}\n{log}")


def ask(url: str, key: str, **more: object) -> str:
    headers = {"authorization": f"Bearer {key}"}
    answer = httpx.post(
        f"{url}/v1/chat/completions",
        json=BODY | more,
        headers=headers,
        timeout=120,
        verify=False,
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])
