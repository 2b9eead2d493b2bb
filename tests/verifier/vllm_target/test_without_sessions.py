"""vLLM's server with our plugin where it serves no sessions: as without us, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from picospec.bench.run.services import free_port
from picospec.verifier.vllm_target.launching import module
from tests.verifier.vllm_target.plain_serve import START_S, wait_for

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


def serve(model: Path, *flags: str, port: int) -> subprocess.Popen[str]:
    """Start vLLM's server with one layer of a model, and no weights."""
    environment = {
        **os.environ, "VLLM_PLUGINS": "picospec", "VLLM_NO_USAGE_STATS": "1",
        "PICOSPEC_VERIFIER__PORT": str(free_port()),
    }  # fmt: skip
    command = [
        sys.executable, "-m", *module(), "--model", str(model), "--served-model-name", "tiny",
        "--load-format", "dummy", "--hf-overrides", '{"num_hidden_layers": 1}',
        "--enforce-eager", "--dtype", "float32", "--max-model-len", "128",
        "--max-num-seqs", "4", "--kv-cache-memory-bytes", str(1 << 26),
        "--port", str(port), *flags,
    ]  # fmt: skip
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_a_server_of_embeddings_serves_without_session_routes(directory: Path) -> None:
    port = free_port()
    server = serve(directory, "--runner", "pooling", port=port)
    try:
        wait_for(server, f"http://127.0.0.1:{port}/health")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            asked = {"model": "tiny", "input": [1, 5, 9]}
            found = client.post("/v1/embeddings", json=asked, timeout=60).json()

            assert len(found["data"][0]["embedding"]) > 1
            assert client.post("/v1/speculate").status_code == 404
            assert client.get("/v1/model-facts").status_code == 404
    finally:
        server.terminate()
        server.communicate(timeout=60)


def test_a_flag_that_conflicts_ends_vllm_with_a_line_that_names_it(directory: Path) -> None:
    server = serve(directory, "--use-fp64-gumbel", port=free_port())

    _, errors = server.communicate(timeout=START_S)

    assert server.returncode != 0
    assert "--use-fp64-gumbel cannot be used with VLLM_PLUGINS=picospec" in errors
