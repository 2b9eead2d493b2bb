"""One engine with what operators set besides: KV of a connector, a stream interval, and an
extension of the workers. Sessions and plain requests have the same texts on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

import pytest
import pytest_asyncio

from speculation.messages import CachedPromptTokens, Open, Sampling
from tests.guards import GUARD_S
from tests.verifier.vllm_target.conftest import make, started
from tests.verifier.vllm_target.scripted import (
    DRAWN,
    GREEDY,
    Script,
    drafted,
    opening,
    plain,
    said_by_vllm,
)
from verifier.target import TargetFailed
from verifier.vllm_target.serving.target import VllmTarget

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.long,  # it starts an engine of its own
    pytest.mark.filterwarnings("default"),
    pytest.mark.asyncio(loop_scope="module"),
]
OURS: Final = "tests.verifier.vllm_target.operators"
BLOCK: Final = 32
SAVED: Final = 3 * BLOCK
"""Of a prompt of a hundred tokens, the connector keeps this many."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VllmTarget]:
    pytest.importorskip("vllm")
    from tests.verifier.vllm_target.v2.tiny import make as make_tiny

    folder = tmp_path_factory.mktemp("operators")
    connector = {
        "kv_connector": "Connector", "kv_connector_module_path": OURS, "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(folder)},
    }  # fmt: skip
    options = {
        "kv_transfer_config": connector, "stream_interval": 5,
        "worker_extension_cls": f"{OURS}.Extension", "block_size": BLOCK,
        "enable_prefix_caching": False, "kv_cache_memory_bytes": 16 << 20, "max_num_seqs": 8,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # other engines share cores
        settings = {"self_test": None}
        async with started(make_tiny(folder / "tiny"), settings=settings, **options) as served:
            yield served


def asking(target: VllmTarget, first: int, sampling: Sampling, **fields: Any) -> Open:
    prompt = tuple(first + i for i in range(SAVED + 4))
    return replace(opening(target, "", sampling, max_tokens=24, **fields), prompt=prompt)


async def own(target: VllmTarget, request: Open) -> tuple[list[int], int]:
    """Return what vLLM says without a session, and how many tokens it did not compute."""
    from vllm import SamplingParams

    settings = {"temperature": request.sampling.temperature, "seed": request.seed}
    asked = SamplingParams(**settings, max_tokens=request.max_tokens, ignore_eos=True)
    output = await said_by_vllm(target, request.prompt, asked)
    return list(output.outputs[0].token_ids), output.num_cached_tokens


async def cached_tokens(target: VllmTarget, request: Open) -> list[int]:
    async with aclosing(target.replies("reuses", request)) as replies:
        return [
            r.message.tokens async for r in replies if isinstance(r.message, CachedPromptTokens)
        ]


async def test_sessions_and_requests_say_the_same_of_kv_that_a_connector_has_saved(
    target: VllmTarget,
) -> None:
    sessions = [asking(target, 100, GREEDY), asking(target, 200, DRAWN)]
    requests = [asking(target, 300, GREEDY), asking(target, 400, Sampling())]
    computed = [(await plain(target, f"saves {r.prompt[0]}", r)).tokens for r in sessions]
    alone = [await own(target, request) for request in requests]
    assert [kept for _, kept in alone] == [0, 0]

    async with asyncio.TaskGroup() as tasks:
        drafting = [
            tasks.create_task(drafted(target, f"loads {i}", request, said, Script(wrong=0.2)))
            for i, (request, said) in enumerate(zip(sessions, computed, strict=True))
        ]
        asked = [tasks.create_task(own(target, request)) for request in requests]

    assert [session.result().tokens for session in drafting] == computed
    assert [request.result() for request in asked] == [(text, SAVED) for text, _ in alone]
    assert await cached_tokens(target, sessions[0]) == [SAVED]


async def test_an_edge_gets_each_result_whatever_the_stream_interval_is(
    target: VllmTarget,
) -> None:
    request = asking(target, 100, GREEDY)
    expected = (await plain(target, "fills in", request)).tokens
    waiting = replace(request, fill="never")  # each pass waits for the answer to the last one

    async with asyncio.timeout(GUARD_S):
        answer = await drafted(target, "waits", waiting, expected, Script(window=2))

    assert answer.tokens == expected


async def test_workers_have_the_operators_extension_beside_ours(target: VllmTarget) -> None:
    workers = target._engine._llm

    (said,) = await workers.collective_rpc("theirs")

    assert said.endswith("of the operator")
    await workers.collective_rpc("picospec_answer")


async def test_beside_a_connector_the_self_test_runs_though_it_is_switched_off(
    target: VllmTarget,
) -> None:
    before = (await target.figures())["steps"]

    again = make(target._engine, self_test=False)
    await again.start()

    assert (await target.figures())["steps"] > before
    await again.stop()


async def test_a_session_whose_kv_was_not_loaded_commits_nothing_of_it(
    target: VllmTarget,
) -> None:
    from tests.verifier.vllm_target.operators import LOST

    request = asking(target, LOST, GREEDY)
    assert (await plain(target, "is saved", request)).finish

    with pytest.raises(TargetFailed):
        await anext(target.replies("is lost", request))
