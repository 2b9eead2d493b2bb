"""Checks at start that the installed vLLM has what sessions need, by name and not by version.

vLLM calls its scheduler and sampler interfaces experimental. A missing one is reported here
before a model is loaded; the self-test then shows that those there do what is expected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from inspect import signature
from types import ModuleType
from typing import Any, Final

from verifier.target import TargetFailed

_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "vllm.v1.core.sched.scheduler:Scheduler": (
        "add_request", "finish_requests", "has_requests", "schedule", "update_draft_token_ids",
        "update_from_output", "_free_request", "_preempt_request",
    ),
    "vllm.v1.engine:EngineCoreOutput": ("kv_transfer_params", "new_logprobs", "finish_reason"),
    "vllm.v1.engine:EngineCoreRequestType": ("WAKEUP",),
    "vllm.v1.engine.async_llm:AsyncLLM": (
        "generate", "get_supported_tasks", "collective_rpc", "shutdown", "errored",
    ),
    "vllm.v1.engine.core_client:AsyncMPClient": ("call_utility_async",),
    "vllm.v1.sample.rejection_sampler:": ("rejection_sample", "apply_sampling_constraints"),
}  # fmt: skip
_ARGUMENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "vllm.v1.sample.rejection_sampler:rejection_sample": (
        "target_logits", "num_draft_tokens", "max_spec_len",
    ),
    "vllm.engine.arg_utils:AsyncEngineArgs": (
        "scheduler_cls", "worker_extension_cls", "speculative_config", "async_scheduling",
    ),
}  # fmt: skip
OURS: Final = frozenset(
    {"scheduler_cls", "worker_extension_cls", "speculative_config", "async_scheduling",
     "logprobs_mode", "data_parallel_size", "pipeline_parallel_size", "kv_transfer_config"}
)  # fmt: skip
"""Engine options that `Engine.start` sets, or with which sessions cannot be served."""


def check(options: Mapping[str, Any]) -> None:
    """Raise TargetFailed unless the installed vLLM, with these options, can serve sessions."""
    if clash := sorted(OURS & options.keys()):
        raise TargetFailed(f"vLLM's option {clash[0]} cannot be chosen: sessions depend on it")
    try:
        vllm = import_module("vllm")
    except (ImportError, OSError) as error:
        raise TargetFailed(f"vLLM does not import: {error}; see docs/deploy.md") from error
    version = getattr(vllm, "__version__", "unknown")
    if missing := list(_missing(options)):
        raise TargetFailed(f"vLLM {version} lacks {', '.join(missing)}")


def _missing(options: Mapping[str, Any]) -> Iterator[str]:
    for path, names in _NAMES.items():
        holder = _find(path)
        known = set(getattr(holder, "__struct_fields__", ())) | set(dir(holder or None))
        yield from (f"{path.rstrip(':')}.{name}" for name in names if name not in known)
    for path, names in _ARGUMENTS.items():
        found = _find(path)
        parameters = signature(found).parameters if callable(found) else {}
        yield from (f"{path}({name})" for name in names if name not in parameters)
    configured = _find("vllm.engine.arg_utils:AsyncEngineArgs")
    known = set(signature(configured).parameters) if callable(configured) else set()
    yield from (f"the engine option {name!r}" for name in options if name not in known)


def _find(path: str) -> Any:
    module_name, _, name = path.partition(":")
    try:
        module: ModuleType = import_module(module_name)
    except ImportError:
        return None
    return getattr(module, name, None) if name else module
