"""How many draft tokens of a session vLLM has place for in a step."""

from __future__ import annotations

from typing import Any, Final

import structlog

from picospec.verifier.vllm_target.configuring.conflicts import Conflict

_OTHERS: Final = 2
"""Rows of a session beside those of its draft tokens: before them a forced token, after them
the one that is drawn."""


def most_drafts(wanted: int, args: Any) -> int:
    """Return `wanted`, or less where an engine has fewer rows for a request: with adapters vLLM
    wants a step to have rows for `max_num_seqs` requests of full width. Raises Conflict.

    args: vLLM's EngineArgs. What is not set is a server's default.
    """
    if not args.enable_lora:
        return wanted
    from vllm.usage.usage_lib import UsageContext

    defaults = args.get_batch_defaults(args.tensor_parallel_size)
    tokens, requests = (each[UsageContext.OPENAI_API_SERVER] for each in defaults)
    rows = (args.max_num_batched_tokens or tokens) // (args.max_num_seqs or requests)
    if rows <= _OTHERS:
        raise Conflict(f"--enable-lora: {rows} rows a request leave no place for draft tokens")
    most = min(wanted, rows - _OTHERS)
    if most < wanted:
        log = structlog.get_logger("verifier")
        log.warning("max_verify_lowered", max_verify=most, see="docs/vllm.md")
    return int(most)
