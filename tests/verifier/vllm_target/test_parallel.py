"""One engine over several processes: a session's messages reach the core that holds it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from picospec.verifier.vllm_target.serving.target import VllmTarget
from tests.verifier.vllm_target.conftest import engine, make
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
ENGINES: dict[str, dict[str, Any]] = {
    "tensor": {"tensor_parallel_size": 2},
    "data": {"data_parallel_size": 2},
}
SMALL = {"kv_cache_memory_bytes": 16 << 20, "max_num_seqs": 8}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.verifier.vllm_target.v2.tiny import make as make_tiny

    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=ENGINES)
async def parallel(
    request: pytest.FixtureRequest, tiny: Path
) -> AsyncIterator[tuple[str, VllmTarget]]:
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # two workers share the cores
    async with engine(tiny, **SMALL, **ENGINES[request.param]) as running:
        target = make(running)
        await target.start()
        yield request.param, target
        await target.stop()


async def test_sessions_at_once_generate_what_they_generate_alone(
    parallel: tuple[str, VllmTarget],
) -> None:
    _, target = parallel
    requests = [
        opening(target, prompt, (GREEDY, DRAWN)[i % 2], seed=i)
        for i, prompt in enumerate(PROMPTS)
    ]
    alone = [await plain(target, f"alone {i}", each) for i, each in enumerate(requests)]

    found = await asyncio.gather(
        *(
            drafted(
                target,
                f"together {i}",
                replace(each, fill="never"),  # how dear rows are on this host says nothing here
                alone[i].tokens,
                Script(wrong=0.1 * (i % 3)),
            )
            for i, each in enumerate(requests)
        )
    )

    assert [answer.tokens for answer in found] == [answer.tokens for answer in alone]
    for i, answer in enumerate(found):
        assert answer.finish is not None
        totals = answer.finish.totals
        assert totals.accepted > 20, (i, totals)
        assert i % 3 or totals.accepted == totals.judged
