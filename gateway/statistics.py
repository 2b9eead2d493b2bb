"""Speculation statistics in the format of vLLM."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise, zip_longest

from gateway.ports import Statistics


def total(parts: Iterable[Statistics]) -> Statistics:
    """Add up the statistics of several choices."""
    whole = Statistics()
    for part in parts:
        pairs = zip_longest(
            whole.accepted_per_position, part.accepted_per_position, fillvalue=0
        )
        whole = Statistics(
            target_passes=whole.target_passes + part.target_passes,
            drafts=whole.drafts + part.drafts,
            draft_tokens=whole.draft_tokens + part.draft_tokens,
            accepted_tokens=whole.accepted_tokens + part.accepted_tokens,
            accepted_per_position=tuple(a + b for a, b in pairs),
        )
    return whole


def speculative_decoding(counted: Statistics) -> dict[str, object]:
    """Return vLLM's `metrics.speculative_decoding` (summary), with two fields of our own.

    `acceptance_histogram[j]` is the number of passes that accepted exactly j draft tokens, of
    those that verified any. Our own fields are `num_target_passes`, which includes fill-in
    passes, and `num_accepted_tokens_per_pos`.
    """
    return {
        "mean_acceptance_length": 1.0 + _ratio(counted.accepted_tokens, counted.drafts),
        "draft_acceptance_rate": _ratio(counted.accepted_tokens, counted.draft_tokens),
        "acceptance_histogram": _histogram(counted),
        "num_spec_steps": counted.drafts,
        "num_accepted_draft_tokens": counted.accepted_tokens,
        "num_draft_tokens": counted.draft_tokens,
        "num_target_passes": counted.target_passes,
        "num_accepted_tokens_per_pos": list(counted.accepted_per_position),
    }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _histogram(counted: Statistics) -> list[int]:
    """Return the number of passes that accepted exactly j draft tokens, for each j."""
    at_least = (counted.drafts, *counted.accepted_per_position, 0)
    return [here - further for here, further in pairwise(at_least)]
