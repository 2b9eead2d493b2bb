"""Checks whether this vLLM can serve sessions, as far as possible before a model is loaded.

vLLM calls its scheduler and sampler interfaces experimental. A name that we import or read
raises an error if it is gone; one that we only override, replace or set would be ignored
silently. The latter are those of patches, and those that our scheduler overrides or sets.
They are searched for in vLLM's source, because modules of its workers must not be imported
elsewhere. The self-test covers the rest, and cannot be switched off on a version of vLLM that
this project's tests did not run on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

import structlog

from verifier.vllm_target import binding, patches
from verifier.vllm_target.conflicts import Conflict

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
