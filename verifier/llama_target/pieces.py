"""Decides which prompt is read next, and how much of it before the next pass.

A prompt's KV is the same however it is divided (LlamaSettings.prefill_rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

PASSES: Final = 2
"""A piece takes as long as this many passes of the sessions that run beside it: the gaps in
their texts triple, and two thirds of the time go to reading prompts."""


class Pieces:
    """Chooses pieces. most: a piece has this many tokens while no session runs beside it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._token_s = 0.0  # seconds a token in the latest piece; 0 before the first
        self._is_shortest = False  # True if the latest piece was of the shortest prompt

    def choose(self, unread: Sequence[int]) -> int:
        """Return the index of the prompt to read from. unread: the number of unread tokens of
        each prompt, in order of arrival."""
        self._is_shortest = not self._is_shortest
        return unread.index(min(unread)) if self._is_shortest else 0

    def rows(self, pass_s: float) -> int:
        """Return the number of tokens to read. pass_s: seconds that a pass of the running
        sessions takes; 0 while none runs."""
        if not (pass_s and self._token_s):
            return self._most
        return max(1, min(self._most, int(PASSES * pass_s / self._token_s)))

    def observe(self, tokens: int, seconds: float) -> None:
        """Record that a piece of `tokens` tokens took `seconds`."""
        self._token_s = seconds / tokens
