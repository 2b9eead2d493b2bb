"""How many draft tokens of a session vLLM has place for in a step."""

from __future__ import annotations

from typing import Any, Final

import structlog

from picospec.verifier.vllm_target.configuring.conflicts import Conflict

_OTHERS: Final = 2
"""Rows of a session beside those of its draft tokens: before them a forced token, after them
the one that is drawn."""


def most_drafts(wanted: int, args: Any) -> int:
    """Return `wanted`, or less where an engine has fewer rows for a request. Raises Conflict.

    args: vLLM's EngineArgs.
    """
    most, log = wanted, structlog.get_logger("verifier")
    if args.enable_lora:
        most = min(most, _drafts_with_adapters(args))
    if most < wanted:
        log.warning("max_verify_lowered", max_verify=most, see="docs/vllm.md")
    return most


def _drafts_with_adapters(args: Any) -> int:
    rows = _rows_with_adapters(args)
    if rows <= _OTHERS:
        raise Conflict(f"--enable-lora: {rows} rows a request leave no place for draft tokens")
    return rows - _OTHERS


def _rows_with_adapters(args: Any) -> int:
    """Return the rows that vLLM wants there to be for each of `max_num_seqs` requests at once:
    the share of each in a step. What is not set is a server's default."""
    from vllm.usage.usage_lib import UsageContext

    tokens, requests = (
        each[UsageContext.OPENAI_API_SERVER]
        for each in args.get_batch_defaults(args.tensor_parallel_size)
    )
    rows: int = (args.max_num_batched_tokens or tokens) // (args.max_num_seqs or requests)
    return rows
