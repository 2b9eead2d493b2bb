"""Flags of vLLM with which sessions cannot be served. Each is named before a model loads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

SCHEDULER: Final = "picospec.verifier.vllm_target.core.scheduler.PicoScheduler"
EXTENSIONS: Final = {
    "v1": "picospec.verifier.vllm_target.worker.extension.PicoWorkerExtension",
    "v2": "picospec.verifier.vllm_target.worker.v2.extension.PicoWorkerExtension",
}
"""By the model runner."""

_EXTENSIONS: Final = ("", *EXTENSIONS.values())


class Conflict(ValueError):
    """This vLLM, or what the operator asks of it, leaves no place for sessions."""


@dataclass(frozen=True, slots=True)
class Rule:
    option: str
    """A field of EngineArgs."""

    broken: Callable[[Any], bool]
    """Whether its value is refused."""

    why: str

    @property
    def flag(self) -> str:
        """The option as vLLM's command line spells it."""
        return "--" + self.option.replace("_", "-")


_KV_STAYS: Final = "a session keeps its KV in this engine"
RULES: Final = (
    Rule("scheduler_cls", lambda v: v not in (None, SCHEDULER), "sessions need their own"),
    Rule("worker_extension_cls", lambda v: v not in _EXTENSIONS, "it is the judge"),
    Rule("async_scheduling", bool, "a step is planned with the drafts that are there by then"),
    Rule("use_fp64_gumbel", bool, "edges draw with noise of 32 bits"),
    Rule("logprobs_mode", lambda v: v.endswith("_logits"), "edges expect log-probabilities"),
    Rule(
        "pipeline_parallel_size", lambda v: v > 1, "a step is planned before the last is over"
    ),
    Rule("watermark_config", lambda v: v is not None, "edges draw without a watermark"),
    Rule("kv_transfer_config", lambda v: v is not None, _KV_STAYS),
    Rule("kv_offloading_size", lambda v: v is not None, _KV_STAYS),
    Rule("enable_elastic_ep", bool, "an engine that joins later has no judge"),
)


def check(args: Any, *, rust: bool) -> None:
    """Raise Conflict if an engine option is one that sessions do not allow.

    args: vLLM's EngineArgs. rust: whether vLLM's front end in Rust was asked for.
    """
    if rust:
        raise Conflict("VLLM_USE_RUST_FRONTEND: that front end has no place for our routes")
    for rule in RULES:
        if rule.broken(getattr(args, rule.option)):
            raise Conflict(f"{rule.flag} cannot be used with VLLM_PLUGINS=picospec: {rule.why}")
