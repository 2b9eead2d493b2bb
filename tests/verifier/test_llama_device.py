"""The embedded target on a device: strict texts are equal, and near ones part at near-ties.

`make test-vulkan` gives it Mesa's software Vulkan driver; on a GPU host it takes the GPU.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import pytest_asyncio

from gateway.ports import Job, opening
from local_models.errors import CannotOpen
from local_models.llama_cpp.devices import all_devices, computing
from local_models.llama_cpp.library import has_llama
from local_models.store import open_store
from speculation.messages import Draft
from speculation.model_facts import Limits, TokenId
from tests.verifier import served_llama
from tests.verifier.served_llama import (
    PROMPTS,
    TEMPERATURES,
    Drafter,
    job_of,
    late,
    patchy,
    perfect,
    plain,
    said,
    serving,
    useless,
    with_drafts,
)
from verifier.host import Host
from verifier.llama_target import exactness
from verifier.llama_target.exactness import NEAR
from verifier.llama_target.pass_runner import PassRunner
from verifier.settings import LlamaSettings

pytestmark = [
    pytest.mark.models,
    pytest.mark.long,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(
        not has_llama() or not computing(all_devices()), reason="this llama.cpp has no device"
    ),
]

LIMITS = Limits(max_verify=3)
SLOTS = 8
Texts = list[tuple[Job, list[TokenId]]]


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """A software device takes seconds a pass, and the texts here test more positions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exactness, "POSITIONS", 8)
        patch.setattr(served_llama, "TOKENS", 12)
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def strict() -> AsyncIterator[Host]:
    async with serving(limits=LIMITS, exact="strict", slots=SLOTS) as host:
        yield host


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def texts(strict: Host) -> Texts:
    """Return eight jobs, and their texts without draft tokens, one after another."""
    jobs = [job_of(strict, prompt, t) for t in TEMPERATURES for prompt in PROMPTS]
    return [(job, await plain(strict, job)) for job in jobs]


@pytest.mark.parametrize("drafter", [perfect, useless, patchy, late])
async def test_strict_texts_are_those_without_drafts(
    strict: Host, texts: Texts, drafter: Drafter
) -> None:
    for number, (job, text) in enumerate(texts):
        said, finish = await with_drafts(strict, job, text, drafter, f"{number}")

        assert said == text
        assert drafter is useless or finish.totals.accepted


async def test_strict_texts_of_eight_sessions_at_once_are_those_of_each_alone(
    strict: Host, texts: Texts
) -> None:
    each = [
        with_drafts(strict, job, text, patchy, f"{number}")
        for number, (job, text) in enumerate(texts)
    ]

    assert [said for said, _ in await asyncio.gather(*each)] == [text for _, text in texts]


async def test_a_strict_session_goes_on_from_its_kv_and_from_its_text_alike(
    strict: Host, texts: Texts
) -> None:
    job = job_of(strict, PROMPTS[3], 1.0)
    request = replace(opening(job, strict.ready().facts), top_logprobs=2)
    whole, _ = await said(strict, request)

    for known in (1, len(whole) // 2):
        committed = tuple(token for token, _ in whole[:known])
        rest, cached_tokens = await said(strict, replace(request, committed=committed))
        assert cached_tokens
        assert rest == whole[known:]


def patchy_to_the_end(
    text: Sequence[TokenId], at: int, chance: np.random.Generator
) -> Draft | None:
    """Always give a draft: a text that parts from its plain one may be longer."""
    return patchy(text, at, chance) or useless(text, at, chance)


async def test_near_texts_part_at_near_ties_alone() -> None:
    async with serving(limits=LIMITS, slots=4) as host:
        (learned,) = await host.ready().learned_statistics()
        assert learned["rounding"]["widest_gap"] <= NEAR  # type: ignore[index]

        for prompt in PROMPTS:
            job = job_of(host, prompt, 0.0)
            request = replace(opening(job, host.ready().facts), top_logprobs=5)
            alone, _ = await said(host, request)
            text = [token for token, _ in alone]
            drafted, finish = await with_drafts(
                host, job, text, patchy_to_the_end, prompt, is_judged=True
            )

            assert finish.totals.judged
            parted = [at for at, other in enumerate(drafted) if text[at : at + 1] != [other]]
            if parted:
                _, known = alone[parted[0]]
                assert known.logprob - dict(known.top)[drafted[parted[0]]] <= NEAR
            else:
                assert drafted == text


async def test_what_does_not_fit_into_the_device_is_refused_with_the_numbers() -> None:
    path = open_store(os.environ).find("smollm2", "target").path
    settings = LlamaSettings(slots=256, context_tokens=8192, max_rows=512)
    if computing(all_devices())[0].total_bytes > 48 << 30:
        pytest.skip("256 slots of SmolLM2 fit into this device")

    with pytest.raises(CannotOpen, match=r"MiB free: .* MiB for weights, .* gpu_layers ="):
        PassRunner(path, settings, 17)
