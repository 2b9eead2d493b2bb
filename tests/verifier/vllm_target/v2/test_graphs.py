"""Requests without sessions run in the CUDA graphs that they have without our plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]
REQUESTS = 256


def graphs(directory: Path, ranks: int) -> dict[Any, Any]:
    """Return what vLLM would capture on a GPU, by mode."""
    from vllm.config.compilation import CUDAGraphMode
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

    arguments = EngineArgs(
        model=str(directory), max_model_len=256, max_num_seqs=REQUESTS,
        data_parallel_size=ranks,
    )  # fmt: skip
    config = arguments.create_engine_config()
    config.compilation_config.cudagraph_mode = CUDAGraphMode.FULL_AND_PIECEWISE
    config.compilation_config.cudagraph_capture_sizes = None
    config.compilation_config.max_cudagraph_capture_size = None
    config._set_cudagraph_sizes()
    manager = object.__new__(CudaGraphManager)
    vars(manager).update(
        vllm_config=config, compilation_config=config.compilation_config,
        cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE, max_num_reqs=REQUESTS,
        decode_query_len=1 + config.num_speculative_tokens, varlen_decode=False,
        ubatch_runner=None, lora_capture_cases=[0], _candidates={}, _capture_descs={},
    )  # fmt: skip
    manager._init_candidates()
    return manager._capture_descs


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_graphs_are_those_of_a_vllm_without_us(
    directory: Path, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.engine.arg_utils import EngineArgs

    from picospec.verifier.vllm_target import plugin

    plugin.register()
    ours = graphs(directory, ranks)
    chosen = EngineArgs.create_speculative_config
    monkeypatch.setattr(EngineArgs, "create_speculative_config", chosen.__wrapped__)

    stock = graphs(directory, ranks)

    assert ours == stock
    assert len(stock) == 2
