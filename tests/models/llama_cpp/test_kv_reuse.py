"""Common prefixes, against the definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from picospec.models.llama_cpp.model import common_prefix

TOKENS = st.lists(st.integers(0, 1), max_size=6)


@given(TOKENS, TOKENS)
def test_the_common_prefix_is_the_longest_that_both_have(a: list[int], b: list[int]) -> None:
    length = common_prefix(a, b)

    assert a[:length] == b[:length]
    assert a[: length + 1] != b[: length + 1] or length == min(len(a), len(b))
    assert common_prefix(tuple(a), b) == length
