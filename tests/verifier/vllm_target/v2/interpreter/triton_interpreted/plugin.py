"""Makes interpreted kernels quick enough for tests, in every process of vLLM."""

from __future__ import annotations

import os
from dataclasses import replace

from triton_interpreted import kernels

KERNELS = {
    "sample.gumbel._gumbel_sample_kernel": kernels.gumbel_sample_kernel,
    "structured_outputs._apply_grammar_bitmask_kernel": kernels.apply_grammar_bitmask_kernel,
    "spec_decode.ngram.speculator._ngram_scan_kernel": kernels.ngram_scan_kernel,
    "spec_decode.ngram.speculator._ngram_finalize_kernel": kernels.ngram_finalize_kernel,
}


def install() -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    import vllm.v1.worker.cpu.shm  # noqa: F401  first: it patches what the runner's modules import
    from triton.runtime import interpreter
    from vllm.triton_utils.dispatcher import register_kernels
    from vllm.v1.sample.ops import topk_topp_sampler

    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)  # half of the time
    topk_topp_sampler.HAS_TRITON = False  # torch's code then; the interpreter cannot run theirs
    register_kernels({f"vllm.v1.worker.gpu.{name}": ours for name, ours in KERNELS.items()})
