"""Both services as processes: the edge returns what the target generates (both are SmolLM2)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from models.store import open_store
from tests.edge_agent.processes import ROOT, free_port

pytestmark = pytest.mark.models

PROMPTS = ("Write a haiku about light.", "def fibonacci(n):")
GREEDY: dict[str, object] = {"temperature": 0}
CLIENTS_KEEP_S = 5
"""An idle connection: httpx, and the openai SDK over it."""

WARM: dict[str, object] = {"temperature": 1, "top_p": 0.95, "seed": 5}


@dataclass
class Services:
    verifier: subprocess.Popen[bytes]
    edges: list[subprocess.Popen[bytes]]
    verifier_url: str
    edge_url: str
    useless_url: str
    separate_url: str

    def answer(self, url: str, prompt: str, tokens: int = 24, **settings: object) -> str:
        messages = [{"role": "user", "content": prompt}]
        body = {"model": "smollm2-135m", "messages": messages, "max_tokens": tokens}
        reply = httpx.post(f"{url}/v1/chat/completions", json=body | settings, timeout=120)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["choices"][0]["message"]["content"])


def run(module: str, *options: str) -> subprocess.Popen[bytes]:
    environment = {k: v for k, v in os.environ.items() if k != "PICOSPEC_API_KEYS"}
    command = [sys.executable, "-m", module, *options]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )


def until_ready(url: str) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"{url} is not ready")


def edge(
    verifier_url: str, *options: str, module: str = "edge_agent"
) -> tuple[subprocess.Popen[bytes], str]:
    host, port = "127.0.0.1", str(free_port())
    named = ("--draft-model", "smollm2", "--verifier-url", verifier_url)
    where = ("--host", host, "--port", port)
    return run(module, *named, *where, *options), f"http://{host}:{port}"


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    open_store(os.environ).pull("smollm2", lambda what, done, total: None)
    port = str(free_port())
    url = f"http://127.0.0.1:{port}"
    verifier = run("verifier", "--model", "smollm2", "--port", port, "--llama.threads", "1")
    until_ready(url)
    plain, useless, separate = (
        edge(url),
        edge(url, "useless", module="bench.run.rounds"),
        edge(url, "--judge", "separate"),
    )
    started = Services(
        verifier, [plain[0], useless[0], separate[0]], url, plain[1], useless[1], separate[1]
    )
    for address in (plain[1], useless[1], separate[1]):
        until_ready(address)
    yield started
    for process in (*started.edges, verifier):
        process.send_signal(signal.SIGTERM)
    for process in (*started.edges, verifier):
        process.wait(30)


@pytest.mark.parametrize(
    "settings",
    [GREEDY, WARM, {**WARM, "min_tokens": 10}],
    ids=["greedy", "temperature 1", "long"],
)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_edge_returns_what_the_verifier_generates_alone(
    services: Services, prompt: str, settings: dict[str, object]
) -> None:
    alone = services.answer(services.verifier_url, prompt, **settings)

    assert services.answer(services.edge_url, prompt, **settings) == alone


def test_useless_drafts_change_nothing(services: Services) -> None:
    alone = services.answer(services.verifier_url, PROMPTS[0], **WARM)

    assert services.answer(services.useless_url, PROMPTS[0], **WARM) == alone


def test_separate_runs_and_is_greedy_where_the_target_is(services: Services) -> None:
    alone = services.answer(services.verifier_url, PROMPTS[0], **GREEDY)

    assert services.answer(services.separate_url, PROMPTS[0], **GREEDY) == alone
    assert services.answer(services.separate_url, PROMPTS[0], **WARM)


def test_a_connection_that_was_idle_as_long_as_clients_keep_one_still_serves(
    services: Services,
) -> None:
    unhurried = httpx.HTTPTransport(limits=httpx.Limits(keepalive_expiry=60))
    with httpx.Client(transport=unhurried, base_url=services.edge_url) as client:
        began = client.get("/ready").extensions["network_stream"].get_extra_info("socket")
        time.sleep(CLIENTS_KEEP_S + 0.5)
        used = client.get("/ready").extensions["network_stream"].get_extra_info("socket")

    assert used is began


def test_a_client_that_goes_away_frees_its_session(services: Services) -> None:
    body = {"model": "smollm2-135m", "stream": True, "max_tokens": 2000}
    body |= {"messages": [{"role": "user", "content": PROMPTS[0]}]}

    with httpx.stream(
        "POST", f"{services.edge_url}/v1/chat/completions", json=body, timeout=60
    ) as reply:
        next(reply.iter_lines())

    deadline = time.monotonic() + 5
    while (running := _gauge(services.verifier_url, "picospec:sessions_open")) > 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert running == 0


def _gauge(url: str, name: str) -> float:
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[1])
    raise LookupError(name)
