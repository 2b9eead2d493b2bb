"""vLLM with LoRA adapters: on one engine, with WORKERS on two workers (tensor parallel), and on
two engines behind two API servers. Each session has the text that vLLM says with its adapter.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from gateway.errors import NotFound
from speculation.messages import Finish, Open, Sampling
from tests.verifier.conftest import http2_client
from tests.verifier.down import HEADERS, opened
from tests.verifier.vllm_target.conftest import (
    MODEL,
    WORKERS,
    Served,
    started,
    vllm_serve,
    with_drafts,
)
from tests.verifier.vllm_target.scripted import (
    DRAWN,
    GREEDY,
    PROMPTS,
    Script,
    drafted,
    opening,
    plain,
    said_by_vllm,
)
from verifier.open_checks import check_open
from verifier.target import Unservable
from verifier.vllm_target.serving.target import VllmTarget

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.long,  # it starts an engine of its own
    pytest.mark.filterwarnings("default"),
    pytest.mark.asyncio(loop_scope="module"),
]
NAME = "styled"
RANK = 8
OPTIONS = {
    "tensor_parallel_size": WORKERS,
    "enable_lora": True,
    "max_lora_rank": RANK,
    "max_loras": 2,
    "kv_cache_memory_bytes": 16 << 20,
    "max_num_seqs": 8,
}
"""max_loras: on CPUs vLLM gives the last slot, which is empty here, to requests without an
adapter."""


def adapter(folder: Path, seed: int) -> Path:
    """Write an adapter for the tiny model, with random weights."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    attention = {"q_proj": (128, 128), "v_proj": (64, 128)}
    shapes = {
        f"model.layers.{layer}.self_attn.{name}": shape
        for layer in range(2)
        for name, shape in attention.items()
    }
    weights = {}
    for name, (rows, columns) in (shapes | {"lm_head": (512, 128)}).items():
        a = torch.randn(RANK, columns, generator=generator)
        b = torch.randn(rows, RANK, generator=generator) * 0.05
        key = f"base_model.model.{name}"
        weights |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
    targets = {"target_modules": [*attention, "lm_head"]}
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "bias": "none"}
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config | targets))
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def loaded(tmp_path_factory: Any) -> AsyncIterator[tuple[VllmTarget, Any]]:
    """The target, and vLLM's list of adapters."""
    pytest.importorskip("vllm")
    from vllm.lora.request import LoRARequest

    from tests.verifier.vllm_target.v2.tiny import make as make_tiny

    folder = tmp_path_factory.mktemp("models")
    known = {NAME: LoRARequest(NAME, 1, str(adapter(folder / NAME, seed=1)))}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # two workers share the cores
        settings = {"adapters": known}
        async with started(make_tiny(folder / "tiny"), settings=settings, **OPTIONS) as target:
            yield target, known


async def own(target: VllmTarget, request: Open, lora: Any) -> list[int]:
    """Return what vLLM says without a session."""
    from vllm import SamplingParams

    shape, limits = request.sampling, {"max_tokens": request.max_tokens, "ignore_eos": True}
    settings = {"temperature": shape.temperature, "top_p": shape.top_p, "seed": request.seed}
    output = await said_by_vllm(
        target, request.prompt, SamplingParams(**settings, **limits), lora
    )
    return list(output.outputs[0].token_ids)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
async def test_a_sessions_text_is_what_vllm_says_with_that_adapter(
    loaded: Any, sampling: Sampling
) -> None:
    target, known = loaded
    base = opening(target, PROMPTS[0], sampling)
    request = replace(base, model=NAME)
    check_open(request, target.facts)

    answers = {each.model: await plain(target, each.model, each) for each in (request, base)}
    again, other = await asyncio.gather(
        *(
            drafted(target, f"again {each.model}", each, answers[each.model].tokens, Script())
            for each in (request, base)
        )
    )

    assert answers[NAME].tokens == await own(target, request, known[NAME])
    assert answers[base.model].tokens == await own(target, base, None)
    assert answers[NAME].tokens != answers[base.model].tokens
    assert (again.tokens, other.tokens) == (answers[NAME].tokens, answers[base.model].tokens)
    assert again.finish is not None
    assert again.finish.totals.accepted > 30


async def test_each_adapter_has_an_identity_of_its_own(loaded: Any, tmp_path: Path) -> None:
    from vllm.lora.request import LoRARequest

    target, known = loaded
    before = target.facts
    known["other"] = LoRARequest("other", 2, str(adapter(tmp_path / "other", seed=2)))
    known["gone"] = LoRARequest("gone", 3, str(tmp_path / "gone" / "model"))
    await target.heartbeat()
    facts = target.facts

    assert facts.adapters[NAME] == before.adapters[NAME]
    assert len({facts.identity, *facts.adapters.values()}) == 1 + len(facts.adapters)
    assert facts.named("other").identity == facts.adapters["other"]


async def test_an_open_for_an_unknown_adapter_names_the_model(loaded: Any) -> None:
    target, known = loaded
    request = opening(target, PROMPTS[0], GREEDY)
    identity = target.facts.adapters[NAME]
    with pytest.raises(NotFound, match=r"does not exist; this verifier has .*styled"):
        check_open(replace(request, model="unknown"), target.facts)
    with pytest.raises(Exception, match="identity"):
        check_open(replace(request, identity=identity), target.facts)
    check_open(replace(request, model=NAME, identity=identity), target.facts)
    unloaded = known.pop(NAME)
    try:
        with pytest.raises(Unservable, match="model: the adapter 'styled' is no longer loaded"):
            await plain(target, "unloaded", replace(request, model=NAME))
    finally:
        known[NAME] = unloaded


# `vllm serve` with two engines, which two API servers serve, and with an adapter.


SEVERAL_ENGINES = pytest.mark.skipif(WORKERS < 2, reason="make test-vllm-engines")
SAMPLINGS = Sampling(temperature=0.0), Sampling(temperature=1.0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    pytest.importorskip("vllm")
    from tests.verifier.vllm_target.v2.tiny import make as make_tiny

    folder: Path = tmp_path_factory.mktemp("served")
    flags = (
        "--data-parallel-size", "2", "--enable-lora", "--max-lora-rank", str(RANK),
        "--max-loras", str(OPTIONS["max_loras"]),
        "--lora-modules", f"{NAME}={adapter(folder / NAME, seed=1)}",
    )  # fmt: skip
    async with vllm_serve(make_tiny(folder / "tiny"), folder, *flags) as running:
        yield running


def opening_at(served: Served, seed: int, tokens: int = 24) -> Open:
    facts, prompt = served.facts, tuple(range(5 + seed, 25 + seed))
    sampling = SAMPLINGS[seed % 2]
    return Open(facts.model, facts.vocabulary, prompt, sampling, seed, tokens, ())


async def from_an_edge(url: str, request: Open, drafts: list[int]) -> tuple[list[int], int]:
    """Return what `with_drafts` does, by a connection of its own."""
    async with http2_client(url) as client:
        return await with_drafts(client, request, drafts)


async def said_by_server(served: Served, request: Open) -> list[int]:
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


@SEVERAL_ENGINES
async def test_edges_of_both_api_servers_get_vllms_texts(served: Served) -> None:
    requests = [opening_at(served, seed) for seed in range(8)]
    requests[3] = replace(requests[3], model=NAME)
    expected = [await said_by_server(served, request) for request in requests]
    before = await tokens_by_engine(served)

    found = await asyncio.gather(
        *(from_an_edge(served.url, *each) for each in zip(requests, expected, strict=True))
    )

    assert [text for text, _ in found] == expected
    assert all(accepted > 10 for _, accepted in found), found
    after = await tokens_by_engine(served)
    assert all(b - a >= 24 for a, b in zip(before, after, strict=True)), (before, after)
    assert expected[3] != await said_by_server(served, replace(requests[3], model=MODEL))


@SEVERAL_ENGINES
async def test_on_vllms_port_sessions_are_refused_by_an_error_that_says_why(
    served: Served,
) -> None:
    for path in ("/v1/speculate", "/v1/speculate/a/drafts"):
        answer = await served.vllms.post(path, content=b"", headers=HEADERS)

        assert answer.status_code == 421, path
        assert answer.json()["error"]["code"] == "several_api_servers"
    assert (await served.vllms.get("/v1/model-facts")).status_code == 421


@SEVERAL_ENGINES
async def test_a_session_of_another_api_server_is_unknown(served: Served) -> None:
    """An edge that comes by another connection opens its session anew."""
    statuses = set()
    async with (
        http2_client(served.url) as client,
        opened(client, opening_at(served, 1)) as stream,
    ):
        session = await stream.opened()
        for _ in range(16):
            async with http2_client(served.url) as other:
                answer = await other.delete(f"/v1/speculate/{session}x")
                statuses.add(answer.status_code)
                path = f"/v1/speculate/{session}/drafts"
                statuses.add((await other.post(path, content=b"")).status_code)

    assert statuses == {404, 400}


@SEVERAL_ENGINES
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
    running = [asyncio.create_task(whole(opening_at(served, i, 200))) for i in range(4)]
    for _ in running:
        await begun.acquire()

    served.process.send_signal(signal.SIGTERM)

    assert [type(await each) for each in running] == [Finish] * 4
    assert await asyncio.to_thread(served.process.wait, 60) == 0
