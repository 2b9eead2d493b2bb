"""One real engine for all tests marked `vllm`: SmolLM2-135M in float32 on this CPU.

float32, because bf16 is not bit-identical across batch shapes: argmaxes flip between tokens
whose logits lie one bf16 step apart.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from picospec.models.dequantise import dequantise
from picospec.models.store import open_store
from picospec.speculation.messages import Limits
from picospec.verifier.metrics import VerifierMetrics
from picospec.verifier.vllm_target.serving.target import VllmTarget

if TYPE_CHECKING:
    from picospec.verifier.vllm_target.serving.engine import Engine

WORKERS = int(os.environ.get("PICOSPEC_TEST_WORKERS", "1"))
"""More of them want more cores: they wait for one another in busy loops."""

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_PLUGINS": "picospec",
    "PICOSPEC_VERIFIER__SPECULATION__MAX_VERIFY": "8",
} | ({"VLLM_CPU_OMP_THREADS_BIND": "nobind"} if WORKERS > 1 else {})

# 104 MiB are 17 blocks of 128 tokens: one a session, so those that grow longer get preempted.
OPTIONS = {
    "dtype": "float32",
    "max_model_len": 256,
    "max_num_seqs": 16,
    "kv_cache_memory_bytes": 104 << 20,
}
LIMITS = Limits(max_verify=8, max_ahead=64)
SMALL = (
    "--vllm.dtype", "float32",
    "--vllm.max-model-len", "256",
    "--vllm.max-num-seqs", "4",
    "--vllm.kv-cache-memory-bytes", str(1 << 27),
)  # fmt: skip
"""Options of a service with an engine of its own, which shares the host with that engine."""

ON_ENGINE = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default"),
    pytest.mark.asyncio(loop_scope="session"),
]
"""The `pytestmark` of tests that take the fixture `target`."""


@asynccontextmanager
async def engine(directory: Path, **options: Any) -> AsyncIterator[Engine]:
    """An engine of vLLM, which is stopped at the end."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from picospec.verifier.vllm_target.plugin import register
    from picospec.verifier.vllm_target.serving.engine import Engine

    os.environ |= {**ENVIRONMENT, **os.environ}
    register()  # vLLM may have loaded its plugins before, without ours
    given = OPTIONS | {"enforce_eager": True} | options
    arguments = AsyncEngineArgs(model=str(directory), **given)
    llm = await asyncio.to_thread(AsyncLLM.from_engine_args, arguments)
    try:
        await llm.get_supported_tasks()  # as vLLM's server does
        yield Engine(llm)
    finally:
        await asyncio.to_thread(llm.shutdown, 4.0)


def make(engine: Engine, limits: Limits = LIMITS, **settings: Any) -> VllmTarget:
    metrics = VerifierMetrics(CollectorRegistry())
    return VllmTarget("smollm2", engine, limits, metrics, **settings)


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as safetensors: PICOSPEC_TEST_SAFETENSORS, or converted now from the store."""
    pytest.importorskip("vllm")
    given = os.environ.get("PICOSPEC_TEST_SAFETENSORS")
    if given:
        return Path(given)
    store = open_store(os.environ)
    (source,) = store.pull("smollm2-135m", lambda what, done, total: None)
    target = tmp_path_factory.mktemp("safetensors")
    dequantise(source, target)
    return target


@asynccontextmanager
async def started(directory: Path) -> AsyncIterator[VllmTarget]:
    async with engine(directory) as running:
        served = make(running)
        await served.start()
        yield served
        await served.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def target(directory: Path) -> AsyncIterator[VllmTarget]:
    async with started(directory) as served:
        yield served
