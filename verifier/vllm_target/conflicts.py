"""Some flags of vLLM rule out sessions, or allow them only fewer draft tokens.

Each such conflict is reported before a model loads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import structlog

SCHEDULER: Final = "verifier.vllm_target.core.scheduler.PicoScheduler"
EXTENSIONS: Final = {
    "v1": "verifier.vllm_target.worker.extension.PicoWorkerExtension",
    "v2": "verifier.vllm_target.worker.heads.PicoWorkerExtension",
}
"""Each model runner has its own worker extension."""

_JOINED: Final = "verifier.vllm_target.worker.joined"

_OTHERS: Final = 2
"""A session has this many rows beside those of its draft tokens: one before them, for a
committed token that vLLM does not know yet, and one after them, for the token that is drawn."""

RECURRENT_DRAFTS: Final = 3
"""A model with recurrent layers keeps a state for each draft token that a step may have, of
each request, so a pass judges at most this many unless speculation.max_verify says otherwise.
A state of Qwen3-Next-80B takes 75 MB: 34 of them would take 2.5 GB of each request."""


class Conflict(ValueError):
    """This vLLM, or the operator's flags, leave no room for sessions."""


@dataclass(frozen=True, slots=True)
class ConflictRule:
    option: str
    """EngineArgs has a field of this name."""

    broken: Callable[[Any], bool]
    """Returns True for a value that is refused."""

    why: str

    @property
    def flag(self) -> str:
        """Return the option's spelling on vLLM's command line."""
        return "--" + self.option.replace("_", "-")


RULES: Final = (
    ConflictRule(
        "scheduler_cls", lambda v: v not in (None, SCHEDULER), "sessions need their own"
    ),
    ConflictRule("use_fp64_gumbel", bool, "edges draw with noise of 32 bits"),
    ConflictRule(
        "logprobs_mode", lambda v: v.endswith("_logits"), "edges expect log-probabilities"
    ),
    ConflictRule(
        "pipeline_parallel_size", lambda v: v > 1, "a step is planned before the last is over"
    ),
    ConflictRule("watermark_config", lambda v: v is not None, "edges draw without a watermark"),
    ConflictRule(
        "kv_transfer_config",
        lambda v: _of_kv(v, "kv_role") in ("kv_producer", "kv_consumer"),
        "a session's engine reads its prompt and generates: only kv_role kv_both does both",
    ),
    ConflictRule(
        "kv_transfer_config",
        lambda v: _of_kv(v, "kv_load_failure_policy") == "recompute",
        "an edge goes on elsewhere where KV is lost: kv_load_failure_policy must be fail",
    ),
    ConflictRule(
        "enable_batch_sharded_sampling", bool, "a rank would judge its own requests alone"
    ),
    ConflictRule("enable_elastic_ep", bool, "an engine that joins later has no judge"),
)


def _of_kv(config: Any, name: str) -> object:
    """Return a field of a KVTransferConfig, or of a dict from a caller in Python."""
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


def extension(runner: str, theirs: str) -> str:
    """Return the name of the class that extends workers: ours, or one that is ours and the
    operator's. vLLM takes one class, by a name whose last dot is before the class."""
    ours = EXTENSIONS[runner]
    if theirs in ("", ours) or theirs.startswith(_JOINED):
        return theirs or ours
    return f"{_JOINED}." + f"{ours},{theirs}".replace(".", ":")


def check_flags(args: Any, *, rust: bool) -> None:
    """Raise Conflict if an engine option rules out sessions.

    args: vLLM's EngineArgs. rust: True if vLLM's Rust front end was asked for.
    """
    if rust:
        raise Conflict("VLLM_USE_RUST_FRONTEND: that front end has no place for our routes")
    for rule in RULES:
        if rule.broken(getattr(args, rule.option)):
            raise Conflict(f"{rule.flag} cannot be used with VLLM_PLUGINS=picospec: {rule.why}")


def async_scheduling(
    setting: bool | None, *, runner: str, steps_with_others: bool
) -> bool | None:
    """Return vLLM's option of this name: the operator's choice, or False where sessions cannot
    have it. Raises Conflict if the operator asked for it there.

    steps_with_others: True if this engine steps only together with those of other ranks.
    """
    why = "sessions have it on Model Runner V2 only" if runner != "v2" else ""
    if steps_with_others:
        why = "a rank of experts would add empty steps while its batches run"
    if why and setting:
        raise Conflict(
            f"--async-scheduling cannot be used with VLLM_PLUGINS=picospec here: {why}"
        )
    return False if why else setting


def max_drafts(wanted: int, args: Any) -> int:
    """Return `wanted`, or less if a request has fewer rows: with adapters vLLM requires a step
    to have rows for `max_num_seqs` requests of full width. Raises Conflict.

    args: vLLM's EngineArgs. An unset field has the default of vLLM's server.
    """
    if not args.enable_lora:
        return wanted
    from vllm.usage.usage_lib import UsageContext

    defaults = args.get_batch_defaults(args.tensor_parallel_size)
    tokens, requests = (each[UsageContext.OPENAI_API_SERVER] for each in defaults)
    rows = (args.max_num_batched_tokens or tokens) // (args.max_num_seqs or requests)
    if rows <= _OTHERS:
        raise Conflict(f"--enable-lora: {rows} rows a request leave no place for draft tokens")
    return lowered(wanted, rows - _OTHERS)


def lowered(wanted: int, most: int) -> int:
    """Return at most `most`; the log says so if that is less than was wanted."""
    if most < wanted:
        log = structlog.get_logger("verifier")
        log.warning("max_verify_lowered", max_verify=most, see="docs/vllm.md")
    return min(wanted, most)
