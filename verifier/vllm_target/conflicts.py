"""What rules out sessions is found before a model loads: in this vLLM, and in its flags."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

import structlog

from verifier.vllm_target import binding, patches

# Checks whether this vLLM can serve sessions, as far as possible before a model is loaded.
#
# vLLM calls its scheduler and sampler interfaces experimental. A name that we import or read
# raises an error if it is gone; one that we only override, replace or set would be ignored
# silently. The latter are those of patches, and those that our scheduler overrides or sets.
# They are searched for in vLLM's source, because modules of its workers must not be imported
# elsewhere. The self-test covers the rest, and cannot be switched off on a version of vLLM that
# this project's tests did not run on.

TESTED: Final = ((0, 32), (0, 33))
"""The tests of this project ran on these minor versions of vLLM, the first and the last."""

Names = Mapping[str, Sequence[str]]
"""The source of each of these modules of vLLM must contain these names."""

USED: Final[Names] = {
    "vllm.plugins": ("VLLM_PLUGINS", "vllm.endpoint_plugins"),
    "vllm.v1.core.sched.async_scheduler": (
        "_update_after_schedule", "num_spec_tokens_to_schedule",
    ),
    "vllm.v1.core.sched.output": ("num_spec_tokens_to_schedule",),
    "vllm.v1.core.sched.scheduler": (
        "_free_request", "_preempt_request", "_update_after_schedule", "add_request",
        "deferred_waiting", "kv_holding_waiting", "lora_config",
        "get_grammar_bitmask", "get_request_counts", "has_requests", "max_num_running_reqs",
        "num_spec_tokens", "schedule", "update_draft_token_ids", "update_from_output",
    ),
    "vllm.v1.engine": ("new_logprobs",),
    "vllm.v1.engine.core_client": ("_send_input_message",),
    "vllm.v1.request": (
        "_output_token_ids", "num_computed_tokens", "num_output_placeholders",
        "spec_token_ids",
    ),
}  # fmt: skip
"""Our scheduler overrides or sets these names, or our endpoints rely on them; patches name
their own."""


def check_installation(runner: Literal["v1", "v2"]) -> None:
    """Raise Conflict unless the installed vLLM has all names that this runner needs, and calls
    all that we replace as ours can be called."""
    ours = patches.names(runner)
    used = {each: [*USED.get(each, ()), *ours.get(each, ())] for each in {**USED, **ours}}
    if missing := list(_missing(used)):
        raise Conflict(f"{described(version())} lacks {', '.join(missing)}")
    if changed := list(binding.misfits(_folder(), patches.PATCHES)):
        raise Conflict(
            f"{described(version())} does not call as we know it: {'; '.join(changed)}"
        )


def _folder() -> Path:
    """Return the folder of the installed vLLM's source."""
    spec = find_spec("vllm")
    return Path(spec.origin if spec and spec.origin else "").parent


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


# Some flags of vLLM rule out sessions, or allow them only fewer draft tokens. Each conflict is
# reported before a model loads.

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
