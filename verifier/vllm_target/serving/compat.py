"""Names every internal of vLLM that sessions rely on, and checks it at start. See docs/vllm.md.

vLLM calls its scheduler and sampler interfaces experimental. What is missing is reported here
before a model is loaded; the self-test then shows that what is there does what is expected. It
cannot be switched off for a version that no test of this project ran on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import reduce
from importlib import import_module
from inspect import isclass, isfunction, signature, unwrap
from typing import Any, Final

import structlog

from picospec.verifier.target import TargetFailed

TESTED: Final = ((0, 30), (0, 32))
"""The first and the last version of vLLM on which the tests of this project ran."""

NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "vllm.config:SpeculativeConfig": ("method",),
    "vllm.config:StructuredOutputsConfig": ("backend",),
    "vllm.config:VllmConfig": ("additional_config", "use_v2_model_runner"),
    "vllm.engine.arg_utils:EngineArgs": ("create_speculative_config",),
    "vllm.exceptions:VLLMValidationError": ("parameter",),
    "vllm.outputs:RequestOutput": ("kv_transfer_params", "outputs", "prompt_token_ids"),
    "vllm.platforms:": ("current_platform",),
    "vllm.renderers.chat_utils:": ("load_chat_template",),
    "vllm.sampling_params:RequestOutputKind": ("DELTA",),
    "vllm.sampling_params:SamplingParams": (
        "_validate_spec_decode", "extra_args", "num_logprobs",
    ),
    "vllm.sampling_params:StructuredOutputsParams": (),
    "vllm.v1.core.sched.output:SchedulerOutput": (
        "num_scheduled_tokens", "scheduled_spec_decode_tokens", "total_num_scheduled_tokens",
    ),
    "vllm.v1.core.sched.request_queue:RequestQueue": ("add_request", "remove_request"),
    "vllm.v1.core.sched.scheduler:Scheduler": (
        "add_request", "finish_requests", "has_requests", "schedule", "update_draft_token_ids",
        "update_from_output", "_free_request", "_preempt_request", "connector",
        "finished_req_ids", "max_num_running_reqs", "num_spec_tokens", "requests", "running",
        "scheduler_config", "structured_output_manager", "waiting",
        "kv_holding_waiting|skipped_waiting",
    ),
    "vllm.v1.engine:EngineCoreOutput": (
        "finish_reason", "kv_transfer_params", "new_logprobs", "request_id",
    ),
    "vllm.v1.engine:EngineCoreOutputs": ("outputs",),
    "vllm.v1.engine:EngineCoreRequestType": ("WAKEUP",),
    "vllm.v1.engine:FinishReason": ("ABORT",),
    "vllm.v1.engine.async_llm:AsyncLLM": (
        "collective_rpc", "engine_core", "errored", "generate", "vllm_config",
    ),
    "vllm.v1.engine.core:EngineCore": ("scheduler",),
    "vllm.v1.engine.core:EngineCoreProc": ("input_queue", "output_queue"),
    "vllm.v1.engine.core_client:AsyncMPClient": ("call_utility_async",),
    "vllm.v1.outputs:LogprobsLists": ("logprob_token_ids", "logprobs", "slice_request"),
    "vllm.v1.outputs:ModelRunnerOutput": (
        "logprobs", "req_id_to_index", "sampled_token_ids",
    ),
    "vllm.v1.request:Request": (
        "cache_salt", "client_index", "is_finished", "num_computed_tokens", "num_output_tokens",
        "num_tokens", "request_id", "sampling_params", "spec_token_ids",
    ),
    "vllm.v1.request:RequestStatus": ("FINISHED_ABORTED",),
    "vllm.v1.sample.rejection_sampler:": ("apply_sampling_constraints", "rejection_sample"),
    "vllm.v1.sample.sampler:Sampler": ("topk_topp_sampler",),
    "vllm.v1.spec_decode.custom_class_proposer:": ("create_custom_proposer",),
    "vllm.v1.structured_output:StructuredOutputManager": ("validate_tokens",),
    "vllm.v1.worker.gpu_input_batch:InputBatch": ("req_ids",),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner": (
        "device", "execute_model", "input_batch", "sample_tokens", "sampler",
    ),
}  # fmt: skip
"""What is imported, by module and name, and what is used of each. Of names joined by | the
scheduler has one: its versions call the queue of requests that hold KV by different names."""

ARGUMENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "vllm.engine.arg_utils:AsyncEngineArgs": (
        "async_scheduling", "enforce_eager", "model", "scheduler_cls", "speculative_config",
        "worker_extension_cls",
    ),
    "vllm.sampling_params:SamplingParams": (
        "detokenize", "extra_args", "frequency_penalty", "ignore_eos", "logprobs",
        "max_tokens", "min_tokens", "output_kind", "presence_penalty", "repetition_penalty",
        "stop_token_ids", "structured_outputs", "temperature",
    ),
    "vllm.sampling_params:StructuredOutputsParams": ("json", "json_object"),
    "vllm.v1.core.sched.scheduler:Scheduler._preempt_request": ("request", "timestamp"),
    "vllm.v1.engine:EngineCoreOutput": ("new_token_ids", "request_id"),
    "vllm.v1.engine.async_llm:AsyncLLM.collective_rpc": ("args",),
    "vllm.v1.engine.async_llm:AsyncLLM.generate": ("request_id",),
    "vllm.v1.sample.rejection_sampler:rejection_sample": (
        "max_spec_len", "num_draft_tokens", "target_logits",
    ),
}  # fmt: skip
"""The arguments that are given by name, or taken from a call."""

OURS: Final = frozenset(
    {"scheduler_cls", "worker_extension_cls", "speculative_config", "async_scheduling",
     "logprobs_mode", "data_parallel_size", "pipeline_parallel_size", "kv_transfer_config"}
)  # fmt: skip
"""Engine options that `Engine.start` sets, or with which sessions cannot be served."""

RUNNER: Final = "VLLM_USE_V2_MODEL_RUNNER"
"""vLLM's variable that chooses between its two model runners. Sessions need the first."""


def check(options: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> str:
    """Return the version of the installed vLLM.

    Raises TargetFailed unless it can serve sessions, with these options.
    """
    if clash := sorted(OURS & options.keys()):
        raise TargetFailed(f"vLLM's option {clash[0]} cannot be chosen: sessions depend on it")
    if environment.get(RUNNER, "0").lower() not in ("0", "false"):
        raise TargetFailed(f"{RUNNER} cannot be chosen: vLLM's second runner takes no drafts")
    try:
        vllm = import_module("vllm")
    except (ImportError, OSError) as error:
        raise TargetFailed(f"vLLM does not import: {error}; see docs/deploy.md") from error
    version = str(getattr(vllm, "__version__", "unknown"))
    if missing := list(_missing(options)):
        raise TargetFailed(f"{described(version)} lacks {', '.join(missing)}")
    return version


def is_tested(version: str) -> bool:
    """Whether a version is in the tested range. Builds between two releases are not."""
    release = re.fullmatch(r"(\d+)\.(\d+)(\.\d+)*(\.post\d+)?(\+.*)?", version)
    first, last = TESTED
    return release is not None and first <= (int(release[1]), int(release[2])) <= last


def described(version: str) -> str:
    """Return the version, and for one outside of the tested range that it is."""
    if is_tested(version):
        return f"vLLM {version}"
    first, last = (".".join(map(str, each)) for each in TESTED)
    return f"vLLM {version} (outside of {first} to {last}, which are tested)"


def must_self_test(version: str, wanted: bool) -> bool:
    """Whether to run the self-test: as wanted, but always on a version that is not tested."""
    if is_tested(version):
        return wanted
    log = structlog.get_logger("verifier")
    log.warning("vllm_untested", vllm=described(version), starts="only if its self-test passes")
    return True


def _missing(options: Mapping[str, Any]) -> Iterator[str]:
    for path, names in NAMES.items():
        if (holder := _find(path)) is None:
            yield _shown(path)
            continue
        known = _known(holder)
        for name in names:
            if not any(hasattr(holder, each) or each in known for each in name.split("|")):
                yield _shown(f"{path}.{name}")
    for path, names in ARGUMENTS.items():
        known = _parameters(path)
        yield from (_shown(f"{path}({name})") for name in names if name not in known)
    known = _parameters("vllm.engine.arg_utils:AsyncEngineArgs")
    yield from (f"the engine option {name!r}" for name in options if name not in known)


def _known(holder: Any) -> set[str]:
    """Return the fields of a class, and the attributes that its constructors use."""
    known: set[str] = set()
    for each in holder.__mro__ if isclass(holder) else ():
        known |= set(getattr(each, "__annotations__", ()))
        constructor = unwrap(vars(each).get("__init__", object))
        known |= set(constructor.__code__.co_names if isfunction(constructor) else ())
    return known


def _parameters(path: str) -> set[str]:
    found = _find(path)
    return set(signature(found).parameters) if callable(found) else set()


def _find(path: str) -> Any:
    """Return a module, or what it has under a dotted name; None if there is none."""
    module, _, name = path.partition(":")
    try:
        return reduce(getattr, filter(None, name.split(".")), import_module(module))
    except (ImportError, AttributeError):
        return None


def _shown(path: str) -> str:
    return path.replace(":.", ".").replace(":", ".").replace("|", " or ").rstrip(".")
