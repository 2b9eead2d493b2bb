"""How much of a KV cache sequence a new prompt can reuse: their common prefix.

What one owner's prompt left is not reused for another owner's: the time that a prompt takes
would show whether it begins like one that somebody else has asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def common_prefix(cached: Sequence[T], prompt: Sequence[T]) -> int:
    """Return the length of the common prefix. It is fast where one is a prefix of the other."""
    shorter = min(len(cached), len(prompt))
    if cached[:shorter] == prompt[:shorter]:
        return shorter
    pairs = enumerate(zip(cached, prompt, strict=False))
    return next((i for i, (a, b) in pairs if a != b), shorter)
