"""An edge proxies a chat to the verifier alone, and both ends say what they are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from edge_agent.draft.target_tokenizer import TargetTokenizer
from edge_agent.proxy import DIRECT, Proxy
from speculation.messages import Open
from tests.fakes.world import PASS_S, Edge, World
from tests.gateway.scripted import ANN, BEN, keys_toml
from tests.verifier.conftest import metrics
from tests.verifier.fake_target import STREAMS, FakeTarget, said
from verifier.target import Deliver

ASK = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9, "seed": 4}
KEYS = {"ann": ANN, "ben": BEN}


@pytest.fixture(autouse=True)
def no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake target has none, and the edge would ask for it again and again."""
    monkeypatch.setattr(TargetTokenizer, "introduce", lambda _: asyncio.sleep(0))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with World(target=partial(FakeTarget, pass_s=PASS_S)) as world:
        yield world


@pytest.fixture
async def edge(world: World, tmp_path: Path) -> AsyncIterator[Edge]:
    """An edge whose client has the key of ann."""
    keys = keys_toml(tmp_path / "keys.toml", *KEYS)
    async with world.edge(tmp_path, keys_file=keys) as edge:
        edge.client.headers.update(ANN)
        yield edge


@pytest.fixture
def client(edge: Edge) -> httpx.AsyncClient:
    return edge.client


def chunks(answer: httpx.Response) -> list[Any]:
    lines = answer.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def tenants_tokens(client: httpx.AsyncClient) -> float:
    counted = (await metrics(client)).items()
    return sum(n for name, n in counted if name.startswith("picospec:tenant_tokens_total"))


async def test_the_answer_is_the_verifiers_own_streamed_or_not_and_is_counted_for_the_key(
    client: httpx.AsyncClient, world: World
) -> None:
    streamed = await client.post(DIRECT, json={**ASK, "stream": True})
    whole = await client.post(DIRECT, json=ASK)

    assert streamed.headers["content-type"].startswith("text/event-stream")
    received = chunks(streamed)
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in received)
    assert text == whole.json()["choices"][0]["message"]["content"]
    assert text == "".join(chr(said((STREAMS,), at) + 32) for at in range(9))
    assert received[-1]["metrics"]["speculative_decoding"]["num_target_passes"] == 9
    target = world.processes[0].target
    assert {request.seed for request in target.opened} == {ASK["seed"]}
    assert target.pushed == []
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
    client: httpx.AsyncClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Proxy, "is_without_drafts", lambda *_: True)
    served: dict[str, set[str | None]] = {name: set() for name in KEYS}
    target = world.processes[0].target
    serve = target.serve

    async def noting(
        session: str, request: Open, deliver: Deliver, tenant: str | None = None
    ) -> None:
        served[who].add(target.owners.of_prefixes(tenant, request))
        await serve(session, request, deliver, tenant)

    monkeypatch.setattr(target, "serve", noting)
    while "bad_tokenizer" not in (await client.get("/ready")).text:  # noqa: ASYNC110 - virtual
        await asyncio.sleep(1.0)
    for who, salt in (("ann", ""), ("ben", ""), ("ben", "key-1")):
        for path, body in ENDPOINTS.items():
            salted = {**body, "cache_salt": salt} if salt else body
            answer = await client.post(path, json=salted, headers=KEYS[who])
            assert answer.status_code == 200, (path, answer.text)

    assert len(served["ann"]) == 1  # so what a tenant has read serves it by every way
    assert len(served["ben"]) == 2  # ben's own users differ
    assert not served["ann"] & served["ben"]


async def test_a_verifier_that_falls_silent_ends_the_answer_and_its_prompt_is_counted(
    client: httpx.AsyncClient, world: World
) -> None:
    long = "Hi " * 400
    said = [{"role": "user", "content": long}]
    body = {**ASK, "messages": said, "max_tokens": 99, "stream": True}

    asking = asyncio.create_task(client.post(DIRECT, json=body))
    await asyncio.sleep(1.0)
    world.processes[0].link.silence()
    answer = await asking

    assert "the verifier sent nothing for" in answer.text
    assert await tenants_tokens(client) == pytest.approx(len(long) / 4, rel=0.2)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({**ASK, "seed": None}, 400, "seed"),
        ({**ASK, "seed": -1}, 400, "seed"),
        ({"seed": 4}, 400, "messages"),
        ({**ASK, "model": "another"}, 404, "model"),
        ({**ASK, "temperature": 9}, 400, "temperature"),  # it is the verifier that says so
        ({**ASK, "own": float("nan")}, 400, None),
        ({**ASK, "own": float("inf")}, 400, None),
    ],
)
async def test_what_cannot_be_compared_or_served_names_the_field_and_costs_nothing(
    client: httpx.AsyncClient, body: dict[str, object], status: int, param: str | None
) -> None:
    headers = {"content-type": "application/json"}
    answer = await client.post(DIRECT, content=json.dumps(body), headers=headers)

    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert await tenants_tokens(client) == 0


async def test_without_a_verifier_it_is_a_503(client: httpx.AsyncClient, world: World) -> None:
    world.processes[0].kill()

    answer = await client.post(DIRECT, json=ASK)

    status = (await client.get("/status")).json()
    assert answer.status_code == 503
    assert status["status"] == "unavailable"
    assert [each["ready"] for each in status["verifiers"]] == [False]


async def test_an_edge_that_drains_proxies_nothing_and_says_so(edge: Edge) -> None:
    edge.drain.begin(60.0)

    answer = await edge.client.post(DIRECT, json=ASK)

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    assert (await edge.client.get("/status")).json()["status"] == "draining"


async def test_the_status_of_an_edge_names_models_verifiers_and_versions(
    client: httpx.AsyncClient, world: World
) -> None:
    status = (await client.get("/status")).json()

    (one,) = status.pop("verifiers")
    url = world.processes[0].url
    assert (one["url"], one["in_use"], one["ready"]) == (url, True, True)
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


async def test_the_status_of_a_verifier_tells_of_its_sessions_and_has_no_proxy(
    world: World,
) -> None:
    async with world.client(world.processes[0].url) as client:
        status = (await client.get("/status")).json()
        proxied = await client.post(DIRECT, json=ASK)

    assert status["service"] == "verifier"
    assert status["sessions"]["running"] == 0
    assert status["sessions"]["limit"] > 0
    assert "verifiers" not in status
    assert proxied.status_code == 404
