"""What a sequence of the KV cache is worth to a prompt: the tokens both begin with."""

from __future__ import annotations

from collections.abc import Sequence


def common(held: Sequence[int], prompt: Sequence[int]) -> int:
    """Return the length of the common beginning. Fast where the shorter one is all of it."""
    shorter = min(len(held), len(prompt))
    if held[:shorter] == prompt[:shorter]:
        return shorter
    pairs = enumerate(zip(held, prompt, strict=False))
    return next((i for i, (a, b) in pairs if a != b), shorter)


def price(held: Sequence[int], prompt: Sequence[int]) -> int:
    """Return how many tokens must be decoded anew, and how many are lost, in this sequence."""
    return len(prompt) + len(held) - 2 * common(held, prompt)
