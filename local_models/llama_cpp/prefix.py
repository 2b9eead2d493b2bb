"""A new prompt can reuse its common prefix with a KV cache sequence.

KV of one owner's prompt is not reused for another owner: the time that a prompt takes would
reveal whether it begins like somebody else's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def common_prefix(cached: Sequence[T], prompt: Sequence[T]) -> int:
    """Return the length of the common prefix; fast if one sequence is a prefix of the other."""
    shorter = min(len(cached), len(prompt))
    if cached[:shorter] == prompt[:shorter]:
        return shorter
    pairs = enumerate(zip(cached, prompt, strict=False))
    return next((i for i, (a, b) in pairs if a != b), shorter)
