"""Both services as processes: the edge returns what the target generates (both are SmolLM2)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from picospec.bench.run.services import free_port
from picospec.models.store import open_store
from tests.edge_agent.processes import ROOT

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
    eager_url: str
    """No pass begins here without a draft token, however busy this machine is."""

    past_url: str
    """It has no draft model, and keeps what it answered."""

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
    verifier_url: str, *options: str, module: str = "picospec.edge_agent"
) -> tuple[subprocess.Popen[bytes], str]:
    host, port = "127.0.0.1", str(free_port())
    named = ("--draft-model", "smollm2", "--verifier-url", verifier_url)
    where = ("--host", host, "--port", port)
    return run(module, *named, *where, *options), f"http://{host}:{port}"


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    keeping = tmp_path_factory.mktemp("edge") / "edge.toml"
    keeping.write_text("past_answers_tokens = 1000\n")
    open_store(os.environ).pull("smollm2", lambda what, done, total: None)
    port = str(free_port())
    url = f"http://127.0.0.1:{port}"
    verifier = run(
        "picospec.verifier", "--model", "smollm2", "--port", port, "--llama.threads", "1"
    )
    until_ready(url)
    edges = (
        edge(url),
        edge(url, "useless", module="picospec.bench.run.rounds"),
        edge(url, "--judge", "separate"),
        edge(url, "--fill", "never"),
        edge(url, "--drafter", "none", "--config", str(keeping)),
    )
    processes, addresses = [process for process, _ in edges], [address for _, address in edges]
    started = Services(verifier, processes, url, *addresses)
    for address in addresses:
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


@pytest.mark.parametrize("settings", [GREEDY, WARM], ids=["greedy", "temperature 1"])
def test_what_is_asked_again_has_the_same_answer_in_no_more_passes(
    services: Services, settings: dict[str, object]
) -> None:
    alone = services.answer(services.verifier_url, PROMPTS[0], **settings)

    body = {"messages": [{"role": "user", "content": PROMPTS[0]}], "max_tokens": 24, **settings}
    replies = [
        httpx.post(f"{services.past_url}/v1/chat/completions", json=body, timeout=120).json()
        for _ in range(2)
    ]

    assert [reply["choices"][0]["message"]["content"] for reply in replies] == [alone, alone]
    first, second = (
        reply["metrics"]["speculative_decoding"]["num_target_passes"] for reply in replies
    )
    assert second <= first  # how many fewer, a busy host decides


def test_useless_drafts_change_nothing(services: Services) -> None:
    alone = services.answer(services.verifier_url, PROMPTS[0], **WARM)

    assert services.answer(services.useless_url, PROMPTS[0], **WARM) == alone


def test_separate_runs_and_is_greedy_where_the_target_is(services: Services) -> None:
    alone = services.answer(services.verifier_url, PROMPTS[0], **GREEDY)

    assert services.answer(services.separate_url, PROMPTS[0], **GREEDY) == alone
    assert services.answer(services.separate_url, PROMPTS[0], **WARM)


def watched(url: str, prompt: str, steady: bool = False, **settings: object) -> list[Any]:
    """Return the chunks of a stream that tells of speculation."""
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 48, "stream": True}
    options = {"include_usage": True, "include_speculation": True, "steady": steady}
    body |= {"stream_options": options, **settings}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)
    assert reply.status_code == 200, reply.text
    lines = [line.removeprefix("data: ") for line in reply.text.split("\n\n")]
    assert lines[-2:] == ["[DONE]", ""]
    return [json.loads(line) for line in lines[:-2]]


def counted(chunks: list[Any]) -> Counter[str]:
    """Return the tokens by origin, of all chunks of the text."""
    texts = [chunk for chunk in chunks if chunk["choices"]]
    return sum((Counter(c.get("speculation", {}).get("tokens", {})) for c in texts), Counter())


@pytest.mark.parametrize("settings", [GREEDY, WARM], ids=["greedy", "temperature 1"])
@pytest.mark.parametrize("prompt", [*PROMPTS, "Say ten times: the cat 🐈 sat on the mat."])
@pytest.mark.parametrize(
    ("which", "steady"),
    [("eager_url", False), ("eager_url", True), ("useless_url", False), ("verifier_url", True)],
)
def test_the_origins_of_a_text_agree_with_its_totals_token_by_token(
    services: Services, which: str, steady: bool, prompt: str, settings: dict[str, object]
) -> None:
    chunks = watched(getattr(services, which), prompt, steady, logprobs=True, **settings)

    text = ""
    for chunk in (
        c for c in chunks if c["choices"] and c["choices"][0]["delta"].get("content")
    ):
        spans = chunk["speculation"]["spans"]
        shown = chunk["choices"][0]["delta"]["content"]
        origins = [origin for count, origin in spans for _ in range(count)]
        assert len(origins) == len(shown)
        entries = chunk["choices"][0]["logprobs"]["content"]
        if all(max(entry["bytes"]) < 128 for entry in entries):  # a token has characters
            seen, at = Counter[str](), 0
            for entry in entries:
                (origin,) = set(origins[at : at + len(entry["token"])])
                seen[origin] += 1
                at += len(entry["token"])
            assert at == len(shown)
            assert seen <= Counter(chunk["speculation"]["tokens"])  # a stop token is not seen
        text += shown
    told, last = counted(chunks), chunks[-1]
    assert told.total() == last["usage"]["completion_tokens"]
    assert told == last["speculation"]["tokens"]
    accepted = last["metrics"]["speculative_decoding"]["num_accepted_draft_tokens"]
    assert told.total() - told["target"] == accepted == last["speculation"]["accepted"]
    alone = services.answer(services.verifier_url, prompt, 48, **settings)
    assert text == alone


def test_the_events_of_an_answer_add_up_to_it(services: Services) -> None:
    chunks = watched(services.eager_url, PROMPTS[1], **GREEDY)

    told = [c["speculation"] for c in chunks if not c["choices"]]
    passes = [each for each in told if each["event"] == "pass"]
    totals = told[-1]
    assert sum(each["committed"] for each in passes) == chunks[-1]["usage"]["completion_tokens"]
    assert sum(each["accepted"] for each in passes) == totals["accepted"] > 0
    assert len(passes) == totals["passes"]
    assert totals["bytes_per_token"] > 0
    assert totals["tokens_per_s"] > 0
    assert 0 < totals["cloud_row_ms"] < 10_000
    assert {"chain", "pass", "link", "totals"} == {each["event"] for each in told}


def test_the_tokens_of_separate_have_the_origins_that_it_accepted(services: Services) -> None:
    chunks = watched(services.separate_url, PROMPTS[0], **WARM)

    told, last = counted(chunks), chunks[-1]
    assert told.total() == last["usage"]["completion_tokens"]
    assert told.total() - told["target"] == last["speculation"]["accepted"]


def test_the_edge_relays_what_the_verifier_generates_alone(services: Services) -> None:
    body = {"messages": [{"role": "user", "content": PROMPTS[0]}], "max_tokens": 24, **WARM}
    path = f"{services.edge_url}/v1/picospec/direct/chat/completions"

    relayed = httpx.post(path, json=body, timeout=120).json()

    alone = services.answer(services.verifier_url, PROMPTS[0], **WARM)
    assert relayed["choices"][0]["message"]["content"] == alone


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
