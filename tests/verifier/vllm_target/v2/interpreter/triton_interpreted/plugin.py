"""Makes interpreted kernels quick enough for tests, in every process of vLLM."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import wraps
from typing import Any

from triton_interpreted import kernels

KERNELS = {
    "sample.gumbel._gumbel_sample_kernel": kernels.gumbel_sample_kernel,
    "structured_outputs._apply_grammar_bitmask_kernel": kernels.apply_grammar_bitmask_kernel,
    "spec_decode.ngram.speculator._ngram_scan_kernel": kernels.ngram_scan_kernel,
    "spec_decode.ngram.speculator._ngram_finalize_kernel": kernels.ngram_finalize_kernel,
}


def _keep_asynchronous_scheduling() -> None:
    """Leave it as vLLM has it on a GPU. On CPUs vLLM switches it off, though its worker is a
    process of its own there too."""
    from vllm.platforms.cpu import CpuPlatform

    original = CpuPlatform.check_and_update_config
    if hasattr(original, "__wrapped__"):
        return

    @wraps(original)
    def check_and_update_config(config: Any) -> None:
        asked = config.scheduler_config.async_scheduling
        original(config)
        config.scheduler_config.async_scheduling = asked

    CpuPlatform.check_and_update_config = staticmethod(check_and_update_config)


def install() -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    import vllm.v1.worker.cpu.shm  # noqa: F401  first: it patches what the runner's modules import
    from triton.runtime import interpreter
    from vllm.triton_utils.dispatcher import register_kernels
    from vllm.v1.sample.ops import topk_topp_sampler

    _keep_asynchronous_scheduling()
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)  # half of the time
    topk_topp_sampler.HAS_TRITON = False  # torch's code then; the interpreter cannot run theirs
    register_kernels({f"vllm.v1.worker.gpu.{name}": ours for name, ours in KERNELS.items()})
