"""Writes what a usage counted: OpenAI's `usage`, vLLM's `metrics`, llama.cpp's `timings`."""

from __future__ import annotations

from itertools import pairwise

from gateway.endpoints.answer import Json
from gateway.ports import Statistics
from gateway.request_context import Usage


def usage_of(usage: Usage) -> Json:
    """Return OpenAI's `usage`."""
    counted = usage.total()
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": counted.cached_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "accepted_prediction_tokens": counted.accepted_prediction_tokens,
            "rejected_prediction_tokens": counted.rejected_prediction_tokens,
        },
    }


def extensions_of(usage: Usage) -> Json:
    """Return the fields that end an answer: vLLM's `metrics` and llama.cpp's `timings`."""
    known = _speculative_decoding(usage.total()) if usage.statistics else None
    return {"metrics": {"speculative_decoding": known}, "timings": _timings(usage)}


def _speculation(usage: Usage) -> Json:
    """Return the sums over all choices, which end a watched answer."""
    counted = usage.total()
    return {
        "passes": counted.target_passes,
        "rows": counted.target_passes + counted.draft_tokens,
        "drafted": counted.draft_tokens,
        "accepted": counted.accepted_tokens,
        "acceptance": counted.acceptance,
        "tokens_per_s": _timings(usage)["predicted_per_second"],
    }


def _timings(usage: Usage) -> Json:
    """Return `timings`; "prompt" covers the time to the first token and the tokens read."""
    prompt_s = usage.times.first_s or 0.0
    predicted_s = usage.times.elapsed_s - prompt_s
    counted = usage.total()
    read = usage.prompt_tokens - counted.cached_tokens
    return {
        "cache_n": counted.cached_tokens,
        "prompt_n": read,
        "prompt_ms": prompt_s * 1000,
        "prompt_per_token_ms": _ratio(prompt_s * 1000, read),
        "prompt_per_second": _ratio(read, prompt_s),
        "predicted_n": usage.completion_tokens,
        "predicted_ms": predicted_s * 1000,
        "predicted_per_token_ms": _ratio(predicted_s * 1000, usage.completion_tokens),
        "predicted_per_second": _ratio(usage.completion_tokens, predicted_s),
        "draft_n": counted.draft_tokens,
        "draft_n_accepted": counted.accepted_tokens,
    }


def _speculative_decoding(counted: Statistics) -> Json:
    """Return vLLM's `metrics.speculative_decoding` (summary), with two fields of our own.

    `acceptance_histogram[j]` is the number of passes that accepted exactly j draft tokens, of
    those that verified any. Our own fields are `num_target_passes`, which includes fill-in
    passes, and `num_accepted_tokens_per_pos`.
    """
    at_least = (counted.drafts, *counted.accepted_per_position, 0)
    return {
        "mean_acceptance_length": 1.0 + _ratio(counted.accepted_tokens, counted.drafts),
        "draft_acceptance_rate": counted.acceptance,
        "acceptance_histogram": [here - further for here, further in pairwise(at_least)],
        "num_spec_steps": counted.drafts,
        "num_accepted_draft_tokens": counted.accepted_tokens,
        "num_draft_tokens": counted.draft_tokens,
        "num_target_passes": counted.target_passes,
        "num_accepted_tokens_per_pos": list(counted.accepted_per_position),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
