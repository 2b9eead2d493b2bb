"""Checks whether this vLLM can serve sessions, as far as possible before a model is loaded.

vLLM calls its scheduler and sampler interfaces experimental. A name that we import or read
raises an error if it is gone; one that we only override, replace or set would be ignored
silently. The latter are listed here and searched for in vLLM's source, because modules of its
workers must not be imported elsewhere. The self-test covers the rest, and cannot be switched
off on a version of vLLM that this project's tests did not run on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

import structlog

from picospec.verifier.vllm_target.configuring.conflicts import Conflict

TESTED: Final = ((0, 32), (0, 33))
"""The tests of this project ran on these minor versions of vLLM, the first and the last."""

Names = Mapping[str, Sequence[str]]
"""The source of each of these modules of vLLM must contain these names."""

USED: Final[Names] = {
    "vllm.engine.arg_utils": (
        "_api_process_count", "create_speculative_config", "shutdown_timeout",
    ),
    "vllm.config.parallel": ("worker_extension_cls",),
    "vllm.config.vllm": (
        "_maybe_disable_dynamic_sd_for_data_parallel", "num_speculative_tokens",
    ),
    "vllm.plugins": ("VLLM_PLUGINS", "vllm.endpoint_plugins"),
    "vllm.sampling_params": ("_validate_spec_decode",),
    "vllm.v1.core.sched.async_scheduler": (
        "_update_after_schedule", "num_spec_tokens_to_schedule",
    ),
    "vllm.v1.core.sched.output": ("num_spec_tokens_to_schedule",),
    "vllm.v1.core.sched.scheduler": (
        "_free_request", "_preempt_request", "_update_after_schedule", "add_request",
        "get_grammar_bitmask", "get_request_counts", "has_requests", "max_num_running_reqs",
        "num_spec_tokens", "schedule", "update_draft_token_ids", "update_from_output",
    ),
    "vllm.v1.engine": ("new_logprobs",),
    "vllm.v1.engine.core": (
        "_handle_client_request", "async_scheduling", "check_for_draft_tokens",
        "run_engine_core", "step_fn",
    ),
    "vllm.v1.engine.core_client": ("_send_input_message",),
    "vllm.v1.engine.output_processor": (
        "_update_stats_from_output", "is_prefilling", "process_outputs", "request_states",
    ),
    "vllm.v1.request": (
        "_output_token_ids", "num_computed_tokens", "num_output_placeholders",
        "spec_token_ids",
    ),
}  # fmt: skip

BY_RUNNER: Final[Mapping[str, Names]] = {
    "v1": {"vllm.v1.sample.sampler": ("batched_count_greater_than",)},
    "v2": {
        "vllm.config.compilation": (
            "resolve_cudagraph_mode_and_sizes", "uniform_decode_query_len",
        ),
        "vllm.v1.worker.gpu.model_runner": (
            "RequestState", "StructuredOutputsWorker", "init_speculator", "req_states",
            "use_dense_all_token_ids",
        ),
        "vllm.v1.worker.gpu.spec_decode.rejection_sampler": ("num_speculative_steps",),
        "vllm.v1.worker.gpu.spec_decode.speculator": ("compute_draft_logits", "sample_draft"),
        "vllm.v1.worker.gpu.structured_outputs": (
            "apply_grammar_bitmask", "logits_indices", "mask_stride", "max_num_logits",
        ),
        "vllm.v1.worker.gpu.warmup": ("_warmup_kernels", "scheduler_config"),
    },
}  # fmt: skip
"""The hooks of each model runner use these names in addition."""


def check(runner: Literal["v1", "v2"]) -> None:
    """Raise Conflict unless the installed vLLM has all names that this runner needs."""
    if missing := list(_missing({**USED, **BY_RUNNER[runner]})):
        raise Conflict(f"{described(version())} lacks {', '.join(missing)}")


def version() -> str:
    """Return the version of the installed vLLM."""
    import vllm

    return str(vllm.__version__)


def is_tested(of: str) -> bool:
    """Return True if a version is in the tested range. Builds between two releases are not."""
    release = re.fullmatch(r"(\d+)\.(\d+)(\.\d+)*(\.post\d+)?(\+.*)?", of)
    first, last = TESTED
    return release is not None and first <= (int(release[1]), int(release[2])) <= last


def described(of: str) -> str:
    """Return the version as text, with a note if it is outside of the tested range."""
    if is_tested(of):
        return f"vLLM {of}"
    first, last = (".".join(map(str, each)) for each in TESTED)
    return f"vLLM {of} (outside of {first} to {last}, which are tested)"


def must_self_test(of: str, wanted: bool) -> bool:
    """Return True if the self-test must run: if wanted, and always on an untested version."""
    if is_tested(of):
        return wanted
    log = structlog.get_logger("verifier")
    log.warning("vllm_untested", vllm=described(of), starts="only if its self-test passes")
    return True


def _missing(used: Names) -> Iterator[str]:
    for module, names in used.items():
        try:
            spec = find_spec(module)
        except ModuleNotFoundError:  # its package is missing
            spec = None
        source = Path(spec.origin).read_text("utf-8") if spec and spec.origin else ""
        for name in names if source else ("",):
            if not re.search(rf"\b{re.escape(name)}\b", source):
                yield f"{module}.{name}".rstrip(".")
