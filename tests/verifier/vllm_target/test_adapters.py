"""A session that names a LoRA adapter as its model has the text that vLLM says; with WORKERS
also on an engine of two workers (tensor parallel)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from picospec.gateway.errors import NotFound
from picospec.speculation.messages import Open, Sampling
from picospec.verifier.routes import check_open
from picospec.verifier.target import Unservable
from picospec.verifier.vllm_target.serving.target import VllmTarget
from tests.verifier.vllm_target.conftest import WORKERS, engine, make
from tests.verifier.vllm_target.scripted import (
    DRAWN,
    GREEDY,
    PROMPTS,
    Script,
    drafted,
    opening,
    plain,
)

pytestmark = [
    pytest.mark.vllm,
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
async def loaded(tmp_path_factory: Any) -> AsyncIterator[tuple[VllmTarget, Any, Any]]:
    """The target, vLLM's engine, and vLLM's list of adapters."""
    pytest.importorskip("vllm")
    from vllm.lora.request import LoRARequest

    from tests.verifier.vllm_target.v2.tiny import make as make_tiny

    folder = tmp_path_factory.mktemp("models")
    known = {NAME: LoRARequest(NAME, 1, str(adapter(folder / NAME, seed=1)))}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # two workers share the cores
        async with engine(make_tiny(folder / "tiny"), **OPTIONS) as running:
            target = make(running, adapters=known)
            await target.start()
            yield target, running._llm, known
            await target.stop()


async def said_by_vllm(llm: Any, request: Open, lora: Any) -> list[int]:
    from vllm import SamplingParams

    shape, limits = request.sampling, {"max_tokens": request.max_tokens, "ignore_eos": True}
    settings = {"temperature": shape.temperature, "top_p": shape.top_p, "seed": request.seed}
    asked = SamplingParams(**settings, **limits)
    prompt = {"prompt_token_ids": list(request.prompt)}
    async for output in llm.generate(prompt, asked, request_id="vllms", lora_request=lora):
        last = output
    return list(last.outputs[0].token_ids)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
async def test_a_sessions_text_is_what_vllm_says_with_that_adapter(
    loaded: Any, sampling: Sampling
) -> None:
    target, llm, known = loaded
    base = opening(target, PROMPTS[0], sampling)
    request = replace(base, model=NAME)
    check_open(request, target.facts)

    answers = {each.model: await plain(target, each.model, each) for each in (request, base)}
    again = await drafted(target, "again", request, answers[NAME].tokens, Script())

    assert answers[NAME].tokens == await said_by_vllm(llm, request, known[NAME])
    assert answers[base.model].tokens == await said_by_vllm(llm, base, None)
    assert answers[NAME].tokens != answers[base.model].tokens
    assert again.tokens == answers[NAME].tokens
    assert again.finish is not None
    assert again.finish.totals.accepted > 30


async def test_sessions_at_once_generate_what_they_generate_alone(loaded: Any) -> None:
    target, _, _ = loaded
    requests = [
        replace(
            opening(target, prompt, (GREEDY, DRAWN)[i % 2], seed=i),
            model=NAME if i == 2 else target.facts.model,
            fill="never",  # how dear rows are on this host says nothing here
        )
        for i, prompt in enumerate(PROMPTS)
    ]
    alone = [
        await plain(target, f"alone {i}", replace(each, fill="auto"))
        for i, each in enumerate(requests)
    ]

    found = await asyncio.gather(
        *(
            drafted(target, f"together {i}", each, alone[i].tokens, Script(wrong=0.1 * (i % 3)))
            for i, each in enumerate(requests)
        )
    )

    assert [answer.tokens for answer in found] == [answer.tokens for answer in alone]
    for i, answer in enumerate(found):
        assert answer.finish is not None
        totals = answer.finish.totals
        assert totals.accepted > 20
        assert i % 3 or totals.accepted == totals.judged


async def test_each_adapter_has_an_identity_of_its_own(loaded: Any, tmp_path: Path) -> None:
    from vllm.lora.request import LoRARequest

    target, _, known = loaded
    before = target.facts
    known["other"] = LoRARequest("other", 2, str(adapter(tmp_path / "other", seed=2)))
    known["gone"] = LoRARequest("gone", 3, str(tmp_path / "gone" / "model"))
    await target.heartbeat()
    facts = target.facts

    assert facts.adapters[NAME] == before.adapters[NAME]
    assert len({facts.identity, *facts.adapters.values()}) == 1 + len(facts.adapters)
    assert facts.named("other").identity == facts.adapters["other"]


async def test_an_open_for_an_unknown_adapter_names_the_model(loaded: Any) -> None:
    target, _, known = loaded
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
