"""An edge of its own with real models: its verifier comes and goes, or it serves two models."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from bench.run.services import free_port
from local_models.store import open_store
from tests.end_to_end.fleet import Fleet, gauge
from tests.guards import GUARD_S

pytestmark = pytest.mark.models
PATH = "/v1/chat/completions"
CHAT: dict[str, Any] = {
    "model": "smollm2-135m",
    "messages": [{"role": "user", "content": "Name three colours."}],
    "max_tokens": 24,
    "temperature": 0,
}


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    started = Fleet()
    yield started
    started.end()


def ask(url: str, **more: object) -> httpx.Response:
    answer = httpx.post(f"{url}{PATH}", json=CHAT | more, timeout=GUARD_S)
    assert answer.status_code == 200, answer.text
    return answer


def text_of(answer: httpx.Response) -> str:
    return str(answer.json()["choices"][0]["message"]["content"])


def test_the_draft_model_answers_alone_while_there_is_no_verifier_and_says_so(
    fleet: Fleet,
) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    options = ("--draft-model", "smollm2", "--fallback", "draft", "--verifier-url", away)
    edge = fleet.start("edge_agent", *options)
    fleet.until_ready(edge)

    alone = ask(edge, logprobs=True, top_logprobs=2)
    shaped = ask(edge, structured_outputs={"choice": ["azure", "violet"]})
    fleet.verifier(url=away)
    fleet.until_ready(away)
    together = ask(edge)
    wanted = ask(edge, model=f"draft:{alone.json()['model']}")
    listed = [each["id"] for each in httpx.get(f"{edge}/v1/models").json()["data"]]
    fleet.signal(away, signal.SIGKILL)
    again = ask(edge)

    name = alone.json()["model"]
    assert alone.headers["x-picospec-fallback"] == "draft"
    assert alone.json()["system_fingerprint"] == f"draft:{name}"
    entries = alone.json()["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == text_of(alone)
    assert {len(entry["top_logprobs"]) for entry in entries} == {2}
    assert text_of(shaped) in ("azure", "violet")
    assert "x-picospec-fallback" not in together.headers
    assert together.json().get("system_fingerprint") is None
    assert wanted.json()["model"] == listed[-1] == f"draft:{name}"
    assert text_of(wanted) == text_of(alone)
    assert "x-picospec-fallback" not in wanted.headers  # nobody was absent
    assert again.headers["x-picospec-fallback"] == "draft"
    assert text_of(again) == text_of(alone)
    assert gauge(edge, "picospec:edge_fallback_answers_total") == {"": 3.0}


TARGETS = {"smollm2-135m": "smollm2", "qwen2.5-coder-1.5b": "qwen2.5-coder"}
"""Maps the served names of two real targets to their pairs, which have different drafts."""


def drafts(edge: str) -> dict[str, tuple[str | None, str]]:
    models = httpx.get(f"{edge}/status").json()["models"]
    return {m["name"]: (m["draft"]["model"], m["draft"]["state"]) for m in models}


@pytest.mark.long
def test_each_real_model_says_what_its_own_verifier_says_with_its_own_drafts(
    fleet: Fleet,
) -> None:
    given = "--llama.threads", "1", "--llama.context_tokens", "1024", "--llama.slots", "2"
    urls = {}
    for name, pair in TARGETS.items():
        open_store(os.environ).pull(pair, lambda what, done, total: None)
        urls[name] = fleet.start("verifier", "--model", pair, *given)
    fleet.until_ready(*urls.values())
    where = [word for url in urls.values() for word in ("--verifier-url", url)]
    edge = fleet.start("edge_agent", *where)
    fleet.until_ready(edge)

    first, second = TARGETS
    listed = httpx.get(f"{edge}/v1/models").json()["data"]
    assert {each["id"] for each in listed} == {first, second}
    before = drafts(edge)
    for name in (second, first, second):
        own = {"model": name, "seed": 3, "temperature": 1, "max_tokens": 48}
        assert text_of(ask(edge, **own)) == text_of(ask(urls[name], **own))

    assert (before[first][1], before[second][1]) == ("loaded", "asleep")
    assert drafts(edge)[second] == ("qwen2.5-coder-0.5b", "loaded")
