"""An engine on Model Runner V2 without a GPU, and what vLLM says there without our plugin.

Only where the environment asks for it (make test-vllm-v2), because Triton's interpreter and the
backend beside this file must be there before vLLM is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.verifier.vllm_target.conftest import WORKERS, started
from tests.verifier.vllm_target.v2.tiny import CASES, Text, keywords, prompts
from verifier.vllm_target.serving.target import VllmTarget

BLOCKS = 20
"""Of 128 tokens; too few for fifteen sessions of two."""

BLOCK_BYTES = 128 << 10
STEP = len(prompts()[1]) - 1
"""Most rows of a step: the last token of that prompt is left for another one."""

HERE = Path(__file__).parent
collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["*"]


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.verifier.vllm_target.v2.tiny import make

    return make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def texts(
    directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, int], Text]:
    """What vLLM itself says, by case and number of the prompt."""
    numbers = [(name, number) for name in CASES for number in range(len(prompts()))]
    asked = [(prompts()[i], keywords(name, i, logprobs=2)) for name, i in numbers]
    folder = tmp_path_factory.mktemp("stock")
    (folder / "requests").write_text(json.dumps(asked))
    environment = {"VLLM_PLUGINS": "interpreted", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    command = [sys.executable, HERE / "stock.py", directory]
    command += [folder / "requests", folder / "texts"]
    subprocess.run(command, check=True, env=os.environ | environment, timeout=600)
    said = json.loads((folder / "texts").read_text())
    return {key: Text(*each) for key, each in zip(numbers, said, strict=True)}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def target(directory: Path, texts: object) -> AsyncIterator[VllmTarget]:
    """The engine with our plugin. texts: that engine is gone by then."""
    small = {"kv_cache_memory_bytes": BLOCKS * BLOCK_BYTES, "max_num_batched_tokens": STEP}
    small["worker_extension_cls"] = "tests.verifier.vllm_target.operators.Extension"
    async with started(directory, tensor_parallel_size=WORKERS, **small) as served:
        yield served
