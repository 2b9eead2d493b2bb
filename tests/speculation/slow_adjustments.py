"""What settings change of the logits, token by token, from the definitions of others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import inf
from typing import Any


def slow(
    logits: Sequence[float],
    prompt: Sequence[int],
    output: Sequence[int],
    asked: dict[str, Any],
    stop_tokens: Sequence[int],
) -> list[float]:
    """Return the logits after `output`, as `vllm.model_executor.layers.utils.apply_penalties`,
    vLLM's processors of min_tokens and logit_bias, and transformers'
    RepetitionPenaltyLogitsProcessor define them."""
    counts, expected = Counter(output), []
    for token, logit in enumerate(logits):
        value = logit + asked.get("logit_bias", {}).get(token, 0.0)
        if token in prompt or token in output:
            penalty = asked.get("repetition_penalty", 1.0)
            value = value * penalty if value < 0 else value / penalty
        value -= asked.get("frequency_penalty", 0.0) * counts[token]
        value -= asked.get("presence_penalty", 0.0) * (token in output)
        barred = token in stop_tokens and len(output) < asked.get("min_tokens", 0)
        expected.append(-inf if barred else value)
    if not (budget := asked.get("thinking_budget")) or budget["closing"] in output:
        return expected
    if len(output) != 1 + budget["tokens"] or output[0] != budget["opening"]:
        return expected
    return [0.0 if token == budget["closing"] else -inf for token in range(len(logits))]
