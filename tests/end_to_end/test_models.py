"""One edge serves the models of several verifiers, each to those whose key opens it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import msgspec
import pytest
from openai import OpenAI

from edge_agent.app import build
from edge_agent.draft.target_tokenizer import TargetTokenizer
from edge_agent.settings import load
from gateway.drain import Drain
from gateway.keys import KeyLimits, add_key
from local_models.store import open_store
from tests.end_to_end.fleet import Fleet
from tests.end_to_end.traced import serving
from tests.gateway.scripted import client_of
from tests.verifier.fake_target import FACTS, FakeTarget, FakeTokenizer
from verifier.app import build as build_verifier
from verifier.settings import load as load_verifier

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
    async with AsyncExitStack() as stack:
        urls = [
            await stack.enter_async_context(
                serving(build_verifier(load_verifier(None, {}, {}), lambda _, t=each: t))  # type: ignore[misc]
            )
            for each in targets.values()
        ]
        settings = load(
            None,
            {},
            {"draft_model": "none", "verifier_urls": urls, "keys_file": tmp_path / "keys.toml"},
        )
        app = build(settings, open_store({"PICOSPEC_CACHE": str(tmp_path)}), Drain())
        await stack.enter_async_context(app.router.lifespan_context(app))
        client = await stack.enter_async_context(client_of(app))
        client.headers["authorization"] = f"Bearer {keys['both']}"
        while len((await client.get("/v1/models")).json().get("data", ())) < len(NAMES):  # noqa: ASYNC110 - processes
            await asyncio.sleep(0.02)
        yield client


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


TARGETS = {"smollm2-135m": "smollm2", "qwen2.5-coder-1.5b": "qwen2.5-coder"}
"""Maps the served names of two real targets to their pairs, which have different drafts."""


@pytest.fixture(scope="module")
def real() -> Iterator[tuple[str, dict[str, str]]]:
    """The addresses of an edge, and of the verifiers of two models by their names."""
    fleet = Fleet()
    for pair in TARGETS.values():
        open_store(os.environ).pull(pair, lambda what, done, total: None)
    given = "--llama.threads", "1", "--llama.context_tokens", "1024", "--llama.slots", "2"
    urls = {
        name: fleet.start("verifier", "--model", pair, *given) for name, pair in TARGETS.items()
    }
    fleet.until_ready(*urls.values())
    where = [word for url in urls.values() for word in ("--verifier-url", url)]
    edge = fleet.start("edge_agent", *where)
    fleet.until_ready(edge)
    yield edge, urls
    fleet.end()


def asked(url: str, name: str, seed: int = 3) -> str:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=5) as client:
        answer = client.chat.completions.create(
            model=name,
            seed=seed,
            max_tokens=48,
            messages=[{"role": "user", "content": "Write a Python function that adds."}],
        )
    return answer.choices[0].message.content or ""


def drafts(edge: str) -> dict[str, tuple[str | None, str]]:
    models = httpx.get(f"{edge}/status").json()["models"]
    return {m["name"]: (m["draft"]["model"], m["draft"]["state"]) for m in models}


@pytest.mark.long
@pytest.mark.models
def test_each_real_model_says_what_its_own_verifier_says_with_its_own_drafts(
    real: tuple[str, dict[str, str]],
) -> None:
    edge, urls = real
    first, second = TARGETS
    with OpenAI(base_url=f"{edge}/v1", api_key="none") as client:
        assert {each.id for each in client.models.list()} == {first, second}
    before = drafts(edge)
    for name in (second, first, second):
        assert asked(edge, name) == asked(urls[name], name)

    assert (before[first][1], before[second][1]) == ("loaded", "asleep")
    assert drafts(edge)[second] == ("qwen2.5-coder-0.5b", "loaded")
