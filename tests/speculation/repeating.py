"""Texts that repeat themselves, and what followed before, found without an index."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from picospec.speculation.messages import TokenId
from picospec.speculation.ngrams import LENGTHS, Match

texts = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 12)), max_size=12).map(
    lambda runs: [token for token, times in runs for _ in range(times)]
)
"""Runs of one token among few: long n-grams come back."""


def search(text: Sequence[TokenId]) -> Match | None:
    """The longest n-gram first, its last occurrence with a token after it."""
    for n in LENGTHS:
        for at in range(len(text) - 1, n - 1, -1):
            if len(text) > n and text[at - n : at] == text[len(text) - n :]:
                return Match(text[at], at, n)
    return None
