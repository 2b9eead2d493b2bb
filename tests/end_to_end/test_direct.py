"""An edge proxies a chat to the verifier alone, and both ends say what they are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from edge_agent import app as edge
from edge_agent import proxy as proxying
from edge_agent.draft.target_tokenizer import TargetTokenizer
from edge_agent.proxy import DIRECT, Proxy
from edge_agent.settings import load as load_edge
from gateway.drain import Drain
from local_models.store import open_store
from speculation.messages import Open
from tests.end_to_end.traced import serving
from tests.gateway.scripted import served
from tests.guards import GUARD_S
from tests.verifier.conftest import metrics
from tests.verifier.fake_target import STREAMS, FakeTarget, said
from verifier.app import build
from verifier.settings import load as load_verifier
from verifier.target import Deliver

ASK = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9, "seed": 4}
CLIENTS = {"authorization": "Bearer clients"}
EDGES = {"authorization": "Bearer edges"}


def edge_of(
    verifier: str, root: Path, drain: Drain | None = None, clients: str = ""
) -> FastAPI:
    """Return the app of an edge that has the verifier's key."""
    keys = {"PICOSPEC_API_KEYS": clients, "PICOSPEC_VERIFIER_KEY": "edges"}
    settings = load_edge(None, keys, {"draft_model": "none", "verifier_url": verifier})
    return edge.build(settings, open_store({"PICOSPEC_CACHE": str(root)}), drain or Drain())


def client_of(app: FastAPI, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)


@pytest.fixture(autouse=True)
def no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake target has none, and the edge would ask for it again and again."""
    monkeypatch.setattr(TargetTokenizer, "introduce", lambda _: asyncio.sleep(0))


@pytest.fixture
def target() -> FakeTarget:
    return FakeTarget(pass_s=0.005)


@pytest.fixture
async def verifier(target: FakeTarget) -> AsyncIterator[str]:
    settings = load_verifier(None, {"PICOSPEC_API_KEYS": "edges"}, {})
    async with serving(build(settings, lambda _: target)) as url:
        yield url


@pytest.fixture
async def client(verifier: str, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = edge_of(verifier, tmp_path, clients="clients")
    async with app.router.lifespan_context(app), client_of(app, CLIENTS) as client:
        yield client


def chunks(answer: httpx.Response) -> list[Any]:
    lines = answer.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def test_the_answer_is_the_verifiers_own_streamed_or_not(
    client: httpx.AsyncClient, target: FakeTarget
) -> None:
    streamed = await client.post(DIRECT, json={**ASK, "stream": True})
    whole = await client.post(DIRECT, json=ASK)

    assert streamed.headers["content-type"].startswith("text/event-stream")
    received = chunks(streamed)
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in received)
    assert text == whole.json()["choices"][0]["message"]["content"]
    assert text == "".join(chr(said((STREAMS,), at) + 32) for at in range(9))
    assert received[-1]["metrics"]["speculative_decoding"]["num_target_passes"] == 9
    assert {request.seed for request in target.opened} == {ASK["seed"]}
    assert target.pushed == []


async def test_the_scores_of_a_prompt_are_the_verifiers_own_and_its_tokens_are_counted(
    client: httpx.AsyncClient, target: FakeTarget
) -> None:
    ask = {"prompt": [STREAMS, 5, 6], "echo": True, "logprobs": 0, "max_tokens": 0}

    answer = await client.post("/v1/completions", json=ask)
    refused = await client.post("/v1/completions", json={**ask, "echo": False})

    (choice,) = answer.json()["choices"]
    assert choice["logprobs"]["token_logprobs"] == [None, -5.0, -6.0]
    assert answer.headers["x-picospec-relayed"] == "verifier"
    assert "x-picospec-fallback" not in answer.headers
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_tokens")
    assert await tenants_tokens(client) == 3
    assert target.opened == []


async def test_its_tokens_are_counted_for_the_key(client: httpx.AsyncClient) -> None:
    await client.post(DIRECT, json=ASK)
    await client.post(DIRECT, json={**ASK, "stream": True})

    assert await tenants_tokens(client) == 2 * (2 + 9)


ENDPOINTS = {
    "/v1/chat/completions": ASK,
    DIRECT: ASK,
    "/v1/completions": {"prompt": "Hi", "max_tokens": 3},
    "/v1/messages": {"messages": ASK["messages"], "max_tokens": 3},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 16},
    "/api/chat": {"messages": ASK["messages"], "options": {"num_predict": 3}, "stream": False},
}


async def test_by_no_way_does_a_key_get_what_the_target_has_read_for_another(
    verifier: str,
    target: FakeTarget,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Proxy, "is_without_drafts", lambda *_: True)
    served: dict[str, set[str | None]] = {}
    serve = target.serve

    async def noting(
        session: str, request: Open, deliver: Deliver, tenant: str | None = None
    ) -> None:
        served.setdefault(who, set()).add(target.owners.of_prefixes(tenant, request))
        await serve(session, request, deliver, tenant)

    monkeypatch.setattr(target, "serve", noting)
    app = edge_of(verifier, tmp_path, clients="ann,eve")
    async with app.router.lifespan_context(app), client_of(app) as client:
        while "bad_tokenizer" not in (await client.get("/ready")).text:  # noqa: ASYNC110 - processes
            await asyncio.sleep(0.02)
        for who, salt in (("ann", ""), ("eve", ""), ("eve", "key-1")):
            for path, body in ENDPOINTS.items():
                headers = {"authorization": f"Bearer {who}"}
                salted = {**body, "cache_salt": salt} if salt else body
                answer = await client.post(path, json=salted, headers=headers)
                assert answer.status_code == 200, (path, answer.text)

    assert len(served["ann"]) == 1  # so what a tenant has read serves it by every way
    assert len(served["eve"]) == 2  # eve's own users differ
    assert not served["ann"] & served["eve"]


async def tenants_tokens(client: httpx.AsyncClient) -> float:
    counted = (await metrics(client)).items()
    return sum(n for name, n in counted if name.startswith("picospec:tenant_tokens_total"))


async def test_a_verifier_that_falls_silent_ends_the_answer_and_its_prompt_is_counted(
    client: httpx.AsyncClient, target: FakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxying, "ANSWER_TIMEOUT_S", 0.2)
    target._pass_s = 0.5
    long = "Hi " * 400

    answer = await client.post(
        DIRECT, json={**ASK, "messages": [{"role": "user", "content": long}], "stream": True}
    )

    assert "the verifier sent nothing for 0.2 s" in answer.text
    assert await tenants_tokens(client) == pytest.approx(len(long) / 4, rel=0.1)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
async def test_a_number_that_json_does_not_have_is_a_bad_request(
    client: httpx.AsyncClient, value: str
) -> None:
    asked = json.dumps({**ASK, "own": 0}).replace('"own": 0', f'"own": {value}')
    headers = {"content-type": "application/json"}
    answer = await client.post(DIRECT, content=asked, headers=headers)

    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({**ASK, "seed": None}, 400, "seed"),
        ({**ASK, "seed": -1}, 400, "seed"),
        ({"seed": 4}, 400, "messages"),
        ({**ASK, "model": "another"}, 404, "model"),
        ({**ASK, "temperature": 9}, 400, "temperature"),  # it is the verifier that says so
    ],
)
async def test_what_cannot_be_compared_or_served_names_the_field_and_costs_nothing(
    client: httpx.AsyncClient, body: dict[str, object], status: int, param: str
) -> None:
    answer = await client.post(DIRECT, json=body)

    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert await tenants_tokens(client) == 0


async def test_answers_and_the_status_need_a_clients_key(client: httpx.AsyncClient) -> None:
    answer = await client.post(DIRECT, json=ASK, headers=EDGES)
    status = await client.get("/status", headers=EDGES)

    assert (answer.status_code, status.status_code) == (401, 401)


async def test_without_a_verifier_it_is_a_503(tmp_path: Path) -> None:
    async with client_of(edge_of("http://127.0.0.1:9", tmp_path)) as client:
        answer = await client.post(DIRECT, json=ASK)
        status = (await client.get("/status")).json()

    assert answer.status_code == 503
    assert status["status"] == "unavailable"
    assert "127.0.0.1:9" in status["error"]
    assert status["model"] is None
    assert [each["ready"] for each in status["verifiers"]] == [False]


async def test_an_edge_that_drains_proxies_nothing_and_says_so(
    verifier: str, tmp_path: Path
) -> None:
    drain = Drain()
    drain.begin(60.0)

    async with client_of(edge_of(verifier, tmp_path, drain)) as client:
        answer = await client.post(DIRECT, json=ASK)
        status = (await client.get("/status")).json()

    assert answer.status_code == 503
    assert status["status"] == "draining"


async def test_a_client_that_leaves_ends_the_verifiers_answer(
    verifier: str, target: FakeTarget, tmp_path: Path
) -> None:
    target._pass_s = 0.05
    async with served(edge_of(verifier, tmp_path)) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            ask = {**ASK, "max_tokens": 200, "stream": True}
            async with client.stream("POST", DIRECT, json=ask) as answer:
                await anext(answer.aiter_bytes())
                assert len(target.running) == 1

        async with asyncio.timeout(GUARD_S):
            while target.running:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)


async def test_the_status_of_an_edge_names_models_verifiers_and_versions(
    client: httpx.AsyncClient, verifier: str
) -> None:
    status = (await client.get("/status")).json()

    (one,) = status.pop("verifiers")
    assert (one["url"], one["in_use"], one["ready"]) == (verifier, True, True)
    assert one["rtt_ms"] > 0
    assert (one["sessions"], one["version"]) == (0, status["version"])
    assert one["uptime_s"] >= 0
    assert (status["service"], status["status"], status["error"]) == ("edge", "ok", None)
    assert status["model"] == {"name": "fake", "context_tokens": 256}
    assert status["draft"] is None
    assert (status["judge"], status["fill"], status["lookup"]) == ("coupled", "auto", True)
    assert status["requests"] == 0
    for path in status["links"].values():
        assert (await client.get(path)).status_code == 200


async def test_the_status_of_a_verifier_tells_of_its_sessions_and_has_no_proxy() -> None:
    app = build(load_verifier(None, {}, {}), lambda _: FakeTarget())

    async with app.router.lifespan_context(app), client_of(app) as client:
        status = (await client.get("/status")).json()
        proxied = await client.post(DIRECT, json=ASK)

    assert status["service"] == "verifier"
    assert status["sessions"]["running"] == 0
    assert status["sessions"]["limit"] > 0
    assert "verifiers" not in status
    assert proxied.status_code == 404
