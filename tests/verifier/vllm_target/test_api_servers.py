"""`vllm serve` with two engines, which two API servers serve, and with an adapter."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio

from picospec.bench.run.services import free_port
from picospec.speculation.messages import (
    Finish,
    ModelFacts,
    Open,
    Sampling,
)
from tests.verifier.conftest import http2_client
from tests.verifier.down import HEADERS, opened
from tests.verifier.vllm_target.conftest import WORKERS
from tests.verifier.vllm_target.plain_serve import (
    MODEL,
    VLLMS_KEY,
    ready,
    vllm_serve,
    with_drafts,
)
from tests.verifier.vllm_target.test_adapters import NAME, RANK, adapter

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(WORKERS < 2, reason="make test-vllm-engines"),
    pytest.mark.filterwarnings("default"),
    pytest.mark.asyncio(loop_scope="module"),
]
SAMPLINGS = Sampling(temperature=0.0), Sampling(temperature=1.0)


@dataclass(frozen=True)
class Served:
    process: Any
    url: str
    vllms: httpx.AsyncClient
    facts: ModelFacts


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("vllm")
    from tests.verifier.vllm_target.v2.tiny import make as make_tiny

    folder: Path = tmp_path_factory.mktemp("served")
    port, own_port = free_port(), free_port()
    # on CPUs vLLM gives the last slot, which is empty here, to requests without an adapter
    process = vllm_serve(
        make_tiny(folder / "tiny"), folder, port, own_port, "--data-parallel-size", "2",
        "--enable-lora", "--max-lora-rank", str(RANK), "--max-loras", "2",
        "--lora-modules", f"{NAME}={adapter(folder / NAME, seed=1)}",
    )  # fmt: skip
    url, headers = f"http://127.0.0.1:{port}", {"authorization": f"Bearer {VLLMS_KEY}"}
    ours = f"http://127.0.0.1:{own_port}"
    try:
        async with (
            http2_client(ours) as first,
            httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as vllms,
        ):
            await ready(process, first)
            facts = (await first.get("/v1/model-facts")).content
            yield Served(process, ours, vllms, msgspec.json.decode(facts, type=ModelFacts))
    finally:
        process.kill()
        process.wait(timeout=10)


def opening(served: Served, seed: int, tokens: int = 24) -> Open:
    facts, prompt = served.facts, tuple(range(5 + seed, 25 + seed))
    sampling = SAMPLINGS[seed % 2]
    return Open(facts.model, facts.vocabulary, prompt, sampling, seed, tokens, ())


async def from_an_edge(url: str, request: Open, drafts: list[int]) -> tuple[list[int], int]:
    """Return what `with_drafts` does, by a connection of its own."""
    async with http2_client(url) as client:
        return await with_drafts(client, request, drafts)


async def said_by_vllm(served: Served, request: Open) -> list[int]:
    asked = {
        "model": request.model, "prompt": list(request.prompt), "seed": request.seed,
        "temperature": request.sampling.temperature, "top_p": request.sampling.top_p,
        "max_tokens": request.max_tokens, "ignore_eos": True, "return_token_ids": True,
    }  # fmt: skip
    answer = await served.vllms.post("/v1/completions", json=asked)
    assert answer.status_code == 200, answer.text
    tokens: list[int] = answer.json()["choices"][0]["token_ids"]
    return tokens


async def tokens_by_engine(served: Served) -> list[float]:
    """Return how many tokens each engine has generated."""
    lines = (await served.vllms.get("/metrics")).text.splitlines()
    found = [line for line in lines if line.startswith("vllm:generation_tokens_total{")]
    return [
        sum(float(line.split()[-1]) for line in found if f'engine="{engine}"' in line)
        for engine in range(2)
    ]


async def test_edges_of_both_api_servers_get_vllms_texts(served: Served) -> None:
    requests = [opening(served, seed) for seed in range(8)]
    requests[3] = replace(requests[3], model=NAME)
    expected = [await said_by_vllm(served, request) for request in requests]
    before = await tokens_by_engine(served)

    found = await asyncio.gather(
        *(from_an_edge(served.url, *each) for each in zip(requests, expected, strict=True))
    )

    assert [text for text, _ in found] == expected
    assert all(accepted > 10 for _, accepted in found), found
    after = await tokens_by_engine(served)
    assert all(b - a >= 24 for a, b in zip(before, after, strict=True)), (before, after)
    assert expected[3] != await said_by_vllm(served, replace(requests[3], model=MODEL))


async def test_on_vllms_port_sessions_are_refused_by_an_error_that_says_why(
    served: Served,
) -> None:
    for path in ("/v1/speculate", "/v1/speculate/a/drafts"):
        answer = await served.vllms.post(path, content=b"", headers=HEADERS)

        assert answer.status_code == 421, path
        assert answer.json()["error"]["code"] == "several_api_servers"
    assert (await served.vllms.get("/v1/model-facts")).status_code == 421


async def test_a_session_of_another_api_server_is_unknown(served: Served) -> None:
    """An edge that comes by another connection opens its session anew."""
    statuses = set()
    async with http2_client(served.url) as client, opened(client, opening(served, 1)) as stream:
        session = await stream.opened()
        for _ in range(16):
            async with http2_client(served.url) as other:
                answer = await other.delete(f"/v1/speculate/{session}x")
                statuses.add(answer.status_code)
                path = f"/v1/speculate/{session}/drafts"
                statuses.add((await other.post(path, content=b"")).status_code)

    assert statuses == {404, 400}


async def test_sigterm_lets_sessions_of_both_finish(served: Served) -> None:
    """It ends the fixture's service, and so is the last."""

    async def whole(request: Open) -> object:
        client = http2_client(served.url)
        client.timeout = httpx.Timeout(60)  # four processes may share two busy cores
        async with client, opened(client, request) as stream:
            await stream.opened()
            begun.release()
            return (await stream.rest())[-1]

    begun = asyncio.Semaphore(0)
    running = [asyncio.create_task(whole(opening(served, i, 200))) for i in range(4)]
    for _ in running:
        await begun.acquire()

    served.process.send_signal(signal.SIGTERM)

    assert [type(await each) for each in running] == [Finish] * 4
    assert await asyncio.to_thread(served.process.wait, 60) == 0
