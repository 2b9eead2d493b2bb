"""Names what sessions use of vLLM's objects, and checks it at start. See docs/vllm.md.

vLLM calls its scheduler and sampler interfaces experimental. What is missing is reported before
a model is loaded: it is looked for in vLLM's source, because modules of its workers must not be
imported elsewhere. What we import need not be listed, it reports itself. The self-test then
shows that what is there does what is expected; it cannot be switched off for a version that no
test of this project ran on.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

import structlog

from picospec.verifier.target import TargetFailed

TESTED: Final = ((0, 32), (0, 33))
"""The first and the last version of vLLM on which the tests of this project ran."""

Names = Mapping[str, Sequence[str]]
"""By module and class, what is used of its objects; by module alone, what is used of it."""

USED: Final[Names] = {
    "vllm.config.load:LoadConfig": ("download_dir",),
    "vllm.config.model:ModelConfig": (
        "architectures", "generation_config", "get_diff_sampling_param", "get_vocab_size",
        "is_diffusion", "is_encoder_decoder", "is_multimodal_model", "max_model_len",
        "override_generation_config", "runner_type", "try_get_generation_config",
    ),
    "vllm.config.parallel:ParallelConfig": ("worker_extension_cls",),
    "vllm.config.scheduler:SchedulerConfig": ("max_num_batched_tokens", "max_num_seqs"),
    "vllm.config.speculative:SpeculativeConfig": (
        "method", "num_speculative_tokens", "num_speculative_tokens_per_batch_size",
        "target_model_config", "target_parallel_config",
    ),
    "vllm.config.structured_outputs:StructuredOutputsConfig": ("backend",),
    "vllm.config.vllm:VllmConfig": (
        "additional_config", "attention_config", "compute_hash", "load_config", "lora_config",
        "model_config", "num_speculative_tokens", "observability_config", "parallel_config",
        "profiler_config",
        "scheduler_config", "speculative_config", "use_v2_model_runner", "watermark_config",
    ),
    "vllm.engine.arg_utils:EngineArgs": (
        "_api_process_count", "additional_config", "async_scheduling", "attention_config",
        "create_speculative_config", "enable_elastic_ep", "enable_lora", "get_batch_defaults",
        "kv_offloading_size", "kv_transfer_config", "logprobs_mode", "max_num_batched_tokens",
        "max_num_seqs", "pipeline_parallel_size", "scheduler_cls", "shutdown_timeout",
        "structured_outputs_config", "tensor_parallel_size", "use_fp64_gumbel",
        "watermark_config", "worker_extension_cls",
    ),
    "vllm.envs:": ("VLLM_API_KEY", "VLLM_PLUGINS", "VLLM_USE_RUST_FRONTEND"),
    "vllm.exceptions:VLLMValidationError": ("parameter",),
    "vllm.lora.request:LoRARequest": ("lora_path",),
    "vllm.outputs:RequestOutput": ("kv_transfer_params",),
    "vllm.platforms.interface:Platform": ("get_device_name", "is_cpu"),
    "vllm.plugins:": ("ENDPOINT_PLUGINS_GROUP",),
    "vllm.renderers.base:BaseRenderer": ("get_eos_token_id", "get_tokenizer"),
    "vllm.sampling_params:RequestOutputKind": ("DELTA",),
    "vllm.sampling_params:SamplingParams": (
        "_validate_spec_decode", "all_stop_token_ids", "allowed_token_ids", "extra_args",
        "logit_bias", "min_p", "min_tokens", "n", "num_logprobs", "output_kind", "seed",
        "structured_outputs", "top_k", "top_p",
    ),
    "vllm.usage.usage_lib:UsageContext": ("OPENAI_API_SERVER",),
    "vllm.v1.core.kv_cache_manager:KVCacheManager": ("usage",),
    "vllm.v1.core.sched.output:SchedulerOutput": (
        "num_scheduled_tokens", "num_spec_tokens_to_schedule", "scheduled_spec_decode_tokens",
        "total_num_scheduled_tokens",
    ),
    "vllm.v1.core.sched.request_queue:RequestQueue": ("add_request", "remove_request"),
    "vllm.v1.core.sched.scheduler:Scheduler": (
        "_free_request", "_preempt_request", "add_request", "connector", "finish_requests",
        "finished_req_ids", "has_requests", "kv_cache_manager", "kv_holding_waiting",
        "max_num_active_reqs", "max_num_running_reqs", "num_spec_tokens", "requests",
        "running", "schedule", "scheduler_config", "structured_output_manager",
        "update_draft_token_ids", "update_from_output", "waiting",
    ),
    "vllm.v1.engine:EngineCoreOutput": (
        "finish_reason", "kv_transfer_params", "new_logprobs", "new_token_ids", "request_id",
    ),
    "vllm.v1.engine:EngineCoreOutputs": ("outputs",),
    "vllm.v1.engine:EngineCoreRequestType": ("UTILITY", "WAKEUP"),
    "vllm.v1.engine:FinishReason": ("ABORT",),
    "vllm.v1.engine.async_llm:AsyncLLM": (
        "collective_rpc", "engine_core", "errored", "generate", "renderer", "vllm_config",
    ),
    "vllm.v1.engine.core:EngineCore": ("check_for_draft_tokens", "scheduler"),
    "vllm.v1.engine.core:EngineCoreProc": ("input_queue", "output_queue"),
    "vllm.v1.engine.core_client:AsyncMPClient": (
        "_call_utility_async", "client_count", "client_index",
    ),
    "vllm.v1.engine.core_client:DPAsyncMPClient": ("lb_engines",),
    "vllm.v1.engine.core_client:MPClient": ("core_engines",),
    "vllm.v1.outputs:LogprobsLists": ("logprob_token_ids", "logprobs", "slice_request"),
    "vllm.v1.outputs:ModelRunnerOutput": (
        "logprobs", "req_id_to_index", "sampled_token_ids",
    ),
    "vllm.v1.request:Request": (
        "_output_token_ids", "client_index", "is_finished", "num_computed_tokens",
        "num_tokens", "prompt_token_ids", "request_id", "sampling_params",
        "spec_token_ids",
    ),
    "vllm.v1.request:RequestStatus": ("FINISHED_ABORTED",),
    "vllm.v1.structured_output:StructuredOutputManager": ("accept_tokens", "validate_tokens"),
}  # fmt: skip

BY_RUNNER: Final[Mapping[str, Names]] = {
    "v1": {
        "vllm.v1.sample.logits_processor.state:LogitsProcessors": (
            "argmax_invariant", "non_argmax_invariant",
        ),
        "vllm.v1.sample.ops.topk_topp_sampler:TopKTopPSampler": ("forward",),
        "vllm.v1.sample.rejection_sampler:": (
            "apply_sampling_constraints", "rejection_sample",
        ),
        "vllm.v1.sample.sampler:": ("batched_count_greater_than",),
        "vllm.v1.sample.sampler:Sampler": ("topk_topp_sampler",),
        "vllm.v1.spec_decode.metadata:SpecDecodeMetadata": ("num_draft_tokens",),
        "vllm.v1.worker.gpu_input_batch:InputBatch": (
            "logitsprocs", "num_tokens_no_spec", "req_id_to_index", "req_ids",
        ),
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner": (
            "_sample", "device", "execute_model", "input_batch", "requests", "sample_tokens",
            "sampler", "vllm_config",
        ),
    },
    "v2": {
        "vllm.v1.worker.gpu.input_batch:InputBatch": ("req_ids",),
        "vllm.v1.worker.gpu.model_runner:GPUModelRunner": (
            "prepare_inputs", "rejection_sampler", "req_states", "sample", "sample_tokens",
            "sampler", "speculator", "vllm_config", "vocab_size",
        ),
        "vllm.v1.worker.gpu.model_runner:": ("init_speculator",),
        "vllm.v1.worker.gpu.async_utils:AsyncOutput": ("model_runner_output",),
        "vllm.v1.worker.gpu.sample.gumbel:": ("gumbel_sample",),
        "vllm.v1.worker.gpu.sample.output:SamplerOutput": ("sampled_token_ids",),
        "vllm.v1.worker.gpu.sample.sampler:Sampler": ("apply_sampling_params",),
        "vllm.v1.worker.gpu.spec_decode.rejection_sampler:": (
            "gather_draft_sampled", "rejection_sample",
        ),
        "vllm.v1.worker.gpu.spec_decode.rejection_sampler:RejectionSampler": (
            "num_speculative_steps",
        ),
        "vllm.v1.worker.gpu.spec_decode.speculator:BaseSpeculator": ("propose",),
        "vllm.v1.worker.gpu.states:RequestState": (
            "device", "draft_tokens", "index_to_req_id", "max_num_reqs", "req_id_to_index",
        ),
    },
}  # fmt: skip
"""What the hooks of each model runner use besides."""


def check(runner: Literal["v1", "v2"]) -> None:
    """Raise TargetFailed unless the installed vLLM has all that sessions use on this runner."""
    if missing := list(_missing({**USED, **BY_RUNNER[runner]})):
        raise TargetFailed(f"{described(version())} lacks {', '.join(missing)}")


def version() -> str:
    """Return the version of the installed vLLM."""
    import vllm

    return str(vllm.__version__)


def is_tested(of: str) -> bool:
    """Whether a version is in the tested range. Builds between two releases are not."""
    release = re.fullmatch(r"(\d+)\.(\d+)(\.\d+)*(\.post\d+)?(\+.*)?", of)
    first, last = TESTED
    return release is not None and first <= (int(release[1]), int(release[2])) <= last


def described(of: str) -> str:
    """Return the version, and for one outside of the tested range that it is."""
    if is_tested(of):
        return f"vLLM {of}"
    first, last = (".".join(map(str, each)) for each in TESTED)
    return f"vLLM {of} (outside of {first} to {last}, which are tested)"


def must_self_test(of: str, wanted: bool) -> bool:
    """Whether to run the self-test: as wanted, but always on a version that is not tested."""
    if is_tested(of):
        return wanted
    log = structlog.get_logger("verifier")
    log.warning("vllm_untested", vllm=described(of), starts="only if its self-test passes")
    return True


def _missing(used: Names) -> Iterator[str]:
    for path, names in used.items():
        module, _, holder = path.partition(":")
        known, shown = _defined(module).get(holder), f"{module}.{holder}".rstrip(".")
        if known is None:
            yield shown
            continue
        yield from (f"{shown}.{each}" for each in names if each not in known)


@cache
def _defined(module: str) -> Mapping[str, frozenset[str]]:
    """Return, by class, what the source of a module defines in it; by "", what it defines."""
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:  # of its package
        return {}
    if spec is None or spec.origin is None:
        return {}
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    found = {each.name: frozenset(_bound(each.body)) for each in classes}
    return {**found, "": frozenset(_bound(tree.body))}


def _bound(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Yield the names that statements bind, and the attributes that they set anywhere."""
    for statement in body:
        for node in ast.walk(statement):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    yield name
                case (
                    ast.Name(id=name, ctx=ast.Store())
                    | ast.Attribute(attr=name, ctx=ast.Store())
                ):
                    yield name
                case ast.alias(name=name, asname=alias):
                    yield alias or name
