"""One edge serves the models of several verifiers, each to those whose key opens it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import httpx
import msgspec
import pytest

from edge_agent.draft.target_tokenizer import TargetTokenizer
from gateway.keys import KeyLimits, add_key
from tests.fakes.world import World
from tests.verifier.fake_target import FACTS, FakeTarget, FakeTokenizer

NAMES = ("one", "two")
ENDPOINTS: Mapping[str, Mapping[str, object]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 3},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 16},
    "/api/chat": {"messages": [{"role": "user", "content": "Hi"}], "stream": False},
    "/tokenize": {"prompt": "Hi"},
}


def target(name: str) -> FakeTarget:
    made = FakeTarget()
    made._facts = msgspec.structs.replace(FACTS, model=name, identity=f"{name}-identity")
    return made


@pytest.fixture
def targets() -> dict[str, FakeTarget]:
    return {name: target(name) for name in NAMES}


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """Keys that open both models, and the second one."""
    file = tmp_path / "keys.toml"
    opened: dict[str, tuple[str, ...]] = {"both": (), "second": ("two",)}
    return {who: add_key(file, who, KeyLimits(), names) for who, names in opened.items()}


@pytest.fixture
async def client(
    targets: dict[str, FakeTarget],
    keys: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[httpx.AsyncClient]:
    async def tokenizer(_: TargetTokenizer, vocabulary: str = "") -> FakeTokenizer:
        return FakeTokenizer()

    monkeypatch.setattr(TargetTokenizer, "__call__", tokenizer)
    each = iter(targets.values())
    async with (
        World(len(NAMES), target=lambda: next(each)) as world,
        world.edge(tmp_path, keys_file=tmp_path / "keys.toml") as edge,
    ):
        edge.client.headers["authorization"] = f"Bearer {keys['both']}"
        while await names_at(edge.client, "/v1/models", "data", "id") != [*NAMES]:  # noqa: ASYNC110 - virtual
            await asyncio.sleep(1.0)
        yield edge.client


async def names_at(client: httpx.AsyncClient, path: str, list: str, name: str) -> list[str]:
    return [each[name] for each in (await client.get(path)).json()[list]]


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_each_endpoint_answers_for_the_model_that_is_named(
    client: httpx.AsyncClient, targets: dict[str, FakeTarget], path: str
) -> None:
    for name in (*NAMES, *reversed(NAMES)):
        before = {each: len(targets[each].opened) for each in NAMES}
        answer = await client.post(path, json={**ENDPOINTS[path], "model": name})
        more = [each for each in NAMES if len(targets[each].opened) > before[each]]

        assert answer.status_code == 200, answer.text
        assert more == ([] if path == "/tokenize" else [name])
        if more:
            placed = (await client.get("/status")).json()["placed"][0]
            assert (placed["model"], placed["reason"]) == (name, "only")
    refused = await client.post(path, json={**ENDPOINTS[path], "model": "three"})
    assert refused.status_code == 404
    assert all(name in refused.text for name in NAMES)


async def test_every_list_has_all_models(client: httpx.AsyncClient) -> None:
    for path, list, name in (
        ("/v1/models", "data", "id"),
        ("/api/tags", "models", "name"),
        ("/api/ps", "models", "model"),
        ("/status", "models", "name"),
    ):
        assert await names_at(client, path, list, name) == [*NAMES]
    one = (await client.get("/v1/models/two")).json()
    assert (one["id"], one["root"]) == ("two", "two")


async def test_a_key_opens_the_models_that_its_file_names(
    client: httpx.AsyncClient, keys: dict[str, str], targets: dict[str, FakeTarget]
) -> None:
    client.headers["authorization"] = f"Bearer {keys['second']}"

    assert await names_at(client, "/v1/models", "data", "id") == ["two"]
    assert (await client.get("/v1/models/one")).status_code == 404
    assert await names_at(client, "/status", "models", "name") == ["two"]
    assert await names_at(client, "/status", "verifiers", "model") == ["two"]
    for path, body in ENDPOINTS.items():
        unnamed = await client.post(path, json=body)
        refused = await client.post(path, json={**body, "model": "one"})
        assert unnamed.status_code == 200, unnamed.text
        assert refused.status_code == 404
        assert "'two'" in refused.text
    assert (await client.post("/v1/embeddings", json={"model": "one"})).status_code == 404
    assert not targets["one"].opened
