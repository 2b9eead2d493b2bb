"""An edge whose verifier speaks another version of the protocol answers all the same."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from picospec.edge_agent.app import build
from picospec.edge_agent.settings import load
from picospec.gateway.drain import Drain
from picospec.models.store import open_store
from tests.edge_agent import fake_verifier
from tests.edge_agent.processes import start

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an edge, whose verifier speaks version 5."""
    process = start("old")
    settings = load(None, {}, {"drafter": "none", "verifier_url": process.url})
    app = build(settings, open_store({"PICOSPEC_CACHE": str(tmp_path)}), Drain())
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client
    process.kill()


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "Hi", "model": "plain"})],
)
async def test_it_passes_on_what_the_verifier_answers_and_says_so(
    edge: httpx.AsyncClient, path: str, body: dict[str, object]
) -> None:
    with capture_logs() as logs:
        answer = await edge.post(path, json=body)
        again = await edge.post(path, json=body)

    assert answer.status_code == again.status_code == 200
    assert answer.json() == {"path": path, "asked": {**body, "model": "plain"}}
    assert answer.headers["x-picospec-fallback"] == "undrafted"
    (said,) = [line for line in logs if line["event"] == "undrafted"]
    assert (said["protocol"], said["own"]) == (5, fake_verifier.PROTOCOL_VERSION)
    assert [line["fallback"] for line in logs if line["event"] == "request"] == [
        "undrafted"
    ] * 2


async def test_what_an_answer_for_a_client_of_ollama_took_is_counted(
    edge: httpx.AsyncClient,
) -> None:
    said = {"messages": CHAT["messages"], "prompt_eval_count": 7, "eval_count": 3}

    with capture_logs() as logs:
        answer = await edge.post("/api/chat", json=said)  # it is answered what was asked

    (line,) = [line for line in logs if line["event"] == "request"]
    assert answer.json()["path"] == "/api/chat"
    assert (line["prompt_tokens"], line["completion_tokens"]) == (7, 3)


async def test_its_status_says_so(edge: httpx.AsyncClient) -> None:
    await edge.post("/v1/chat/completions", json=CHAT)

    (verifier,) = (await edge.get("/status")).json()["verifiers"]

    assert (verifier["protocol"], verifier["drafted"]) == (5, False)


async def test_a_model_that_does_not_exist_is_still_not_found(edge: httpx.AsyncClient) -> None:
    answer = await edge.post("/v1/chat/completions", json={**CHAT, "model": "other"})

    assert answer.status_code == 404
    assert json.loads(answer.content)["error"]["code"] == "model_not_found"
