"""One real engine for all tests marked `vllm`: the first layers of SmolLM2-135M, or all of them
with --long, in float32 on this CPU.

float32, because bf16 is not bit-identical across batch shapes: argmaxes flip between tokens
whose logits lie one bf16 step apart.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from bench.run.services import free_port
from local_models.dequantise import dequantise
from local_models.store import open_store
from picospec import ROOMS
from speculation.messages import Commit, Draft, Finish, Open
from speculation.model_facts import Limits, ModelFacts
from tests.guards import GUARD_S
from tests.verifier.conftest import KEY, http2_client
from tests.verifier.down import opened, push, text_of
from verifier.metrics import VerifierMetrics
from verifier.vllm_target.serving.target import VllmTarget

if TYPE_CHECKING:
    from verifier.vllm_target.serving.engine import VllmEngine


WORKERS = int(os.environ.get("PICOSPEC_TEST_WORKERS", "1"))
"""More of them want more cores: they wait for one another in busy loops."""

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_PLUGINS": "picospec",
    "PICOSPEC_VERIFIER__SPECULATION__MAX_VERIFY": "8",
} | ({"VLLM_CPU_OMP_THREADS_BIND": "nobind"} if WORKERS > 1 else {})

OPTIONS = {
    "dtype": "float32",
    "max_model_len": 256,
    "max_num_seqs": 16,
}
LAYER_KV_BYTES = 3632 << 10
"""17 blocks of 128 tokens: one a session, so those that grow longer get preempted."""

LAYERS = 4
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
async def engine(directory: Path, **options: Any) -> AsyncIterator[VllmEngine]:
    """An engine of vLLM, which is stopped at the end."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from verifier.vllm_target.plugin import register
    from verifier.vllm_target.serving.engine import VllmEngine

    os.environ |= {**ENVIRONMENT, **os.environ}
    register()  # vLLM may have loaded its plugins before, without ours
    layers = json.loads((directory / "config.json").read_text())["num_hidden_layers"]
    room = {"enforce_eager": True, "kv_cache_memory_bytes": LAYER_KV_BYTES * layers}
    given = OPTIONS | room | options
    arguments = AsyncEngineArgs(model=str(directory), **given)
    llm = await asyncio.to_thread(AsyncLLM.from_engine_args, arguments)
    try:
        await llm.get_supported_tasks()  # as vLLM's server does
        yield VllmEngine(llm)
    finally:
        await asyncio.to_thread(llm.shutdown, 4.0)


def make(engine: VllmEngine, limits: Limits = LIMITS, **settings: Any) -> VllmTarget:
    metrics = VerifierMetrics(CollectorRegistry())
    return VllmTarget("smollm2", engine, limits, metrics, **settings)


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory, is_long: bool) -> Path:
    """SmolLM2 as safetensors: PICOSPEC_TEST_SAFETENSORS, or converted now from the store.
    Drafts may change the texts of its first layers as little, and their passes are short."""
    pytest.importorskip("vllm")
    given = os.environ.get("PICOSPEC_TEST_SAFETENSORS")
    whole = Path(given) if given else tmp_path_factory.mktemp("safetensors")
    if not given:
        store = open_store(os.environ)
        (source,) = store.pull("smollm2-135m", lambda what, done, total: None)
        dequantise(source, whole)
    return whole if is_long else first_layers(whole, tmp_path_factory.mktemp("layers"))


def first_layers(whole: Path, folder: Path) -> Path:
    """Write a model of the first LAYERS layers of another one."""
    from safetensors.torch import load_file, save_file

    for path in whole.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, folder)
    config = json.loads((whole / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": LAYERS}))
    weights = {
        name: weight
        for name, weight in load_file(whole / "model.safetensors").items()
        if not (of := re.search(r"layers\.(\d+)\.", name)) or int(of[1]) < LAYERS
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@asynccontextmanager
async def started(
    directory: Path,
    limits: Limits = LIMITS,
    settings: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> AsyncIterator[VllmTarget]:
    """A target on an engine of its own. settings: of the target. options: of the engine."""
    async with engine(directory, **options) as running:
        served = make(running, limits, **settings)
        await served.start()
        yield served
        await served.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def target(directory: Path) -> AsyncIterator[VllmTarget]:
    async with started(directory) as served:
        yield served


# `vllm serve` with our plugin, as an operator starts it.


VLLMS_KEY = "of-vllm"
START_S = 480
MODEL = "small"


@dataclass(frozen=True)
class Served:
    process: subprocess.Popen[bytes]
    ours: httpx.AsyncClient
    vllms: httpx.AsyncClient
    facts: ModelFacts

    @property
    def url(self) -> str:
        """The address of our port."""
        return str(self.ours.base_url).rstrip("/")


def _start(
    model: Path, folder: Path, port: int, own_port: int, options: Sequence[str]
) -> subprocess.Popen[bytes]:
    """Start `vllm serve`, in a folder where others have packages with our rooms' names."""
    package = folder / "vllm-0.32.0+cpu.dist-info"  # vllm-cpu is called vllm by this
    package.mkdir()
    about = "Metadata-Version: 2.1", "Name: vllm", "Version: 0.32.0+cpu"
    (package / "METADATA").write_text("\n".join(about) + "\n")
    for room in ROOMS:
        (folder / "work" / room).mkdir(parents=True)
        (folder / "work" / room / "__init__.py").write_text("raise RuntimeError('not ours')")
    path = [*filter(None, [os.environ.get("PYTHONPATH")]), str(folder)]
    environment = {
        "VLLM_PLUGINS": "picospec", **os.environ, "PYTHONPATH": os.pathsep.join(path),
        "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "PICOSPEC_API_KEYS": f"other,{KEY}",
        "PICOSPEC_VERIFIER__PORT": str(own_port), "PICOSPEC_VERIFIER__DRAIN_TIMEOUT_S": "60",
    }  # fmt: skip
    command = [
        sys.executable, "-P", "-m", "vllm.entrypoints.cli.main", "serve", str(model),
        "--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port),
        "--api-key", VLLMS_KEY, "--dtype", "float32", "--enforce-eager",
        "--max-model-len", "512", "--max-num-seqs", "8",
        "--kv-cache-memory-bytes", str(1 << 27), *options,
    ]  # fmt: skip
    return subprocess.Popen(command, env=environment, cwd=folder / "work")


@asynccontextmanager
async def vllm_serve(model: Path, folder: Path, *options: str) -> AsyncIterator[Served]:
    """Run `vllm serve`, and give clients of both ports once it is ready."""
    port, own_port = free_port(), free_port()
    process = _start(model, folder, port, own_port, options)
    url, ours = f"http://127.0.0.1:{port}", http2_client(f"http://127.0.0.1:{own_port}")
    headers = {"authorization": f"Bearer {VLLMS_KEY}"}
    vllms = httpx.AsyncClient(base_url=url, headers=headers, timeout=GUARD_S)
    ours.timeout = httpx.Timeout(GUARD_S)
    try:
        async with ours, vllms:
            await asyncio.to_thread(wait_for, process, f"{ours.base_url}/ready")
            facts = (await ours.get("/v1/model-facts")).content
            yield Served(process, ours, vllms, msgspec.json.decode(facts, type=ModelFacts))
    finally:
        process.kill()
        process.wait(timeout=GUARD_S)


async def with_drafts(
    client: httpx.AsyncClient, request: Open, drafts: list[int]
) -> tuple[list[int], int]:
    """Return the text of a session whose drafts are sent with its first tokens, and how many of
    them were accepted."""
    async with opened(client, request) as stream:
        session = await stream.opened()
        first = await stream.next()
        assert isinstance(first, Commit)
        count = len(first.tokens)
        if drafts:
            answer = await push(client, session, Draft(1, count, 0, tuple(drafts[count:])))
            assert answer.status_code == 204
        messages = [first, *await stream.rest()]
    assert isinstance(messages[-1], Finish)
    return text_of(messages), messages[-1].totals.accepted


def wait_for(process: subprocess.Popen[Any], url: str) -> None:
    """Wait until a server that was started answers there with 200."""
    for _ in range(START_S):
        assert process.poll() is None, "the server ended"
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    pytest.fail("the server was not ready in time")
