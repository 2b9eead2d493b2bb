"""Whose prompt is read next, and how much of it between two passes."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picospec.verifier.llama_target.scheduler import PASSES, Pieces

MOST = 63


def reading(*prompts: int, later: int = 0) -> list[int]:
    """Return after how many pieces each prompt is read. later: so many prompts of one piece
    come one by one, whenever the one before is read."""
    pieces, left, ends, read = Pieces(MOST), [*prompts], [0] * len(prompts), 0
    while any(left[: len(prompts)]):
        unread = [i for i, tokens in enumerate(left) if tokens]
        which = unread[pieces.choose([left[i] for i in unread])]
        left[which] -= min(MOST, left[which])
        read += 1
        if not left[which] and which < len(ends):
            ends[which] = read
        if later and not any(left[len(prompts) :]):
            left, later = [*left, MOST], later - 1
    return ends


@given(st.integers(1, 500), st.lists(st.integers(5_000, 20_000), max_size=4))
def test_a_short_prompt_takes_two_turns_for_each_piece_however_long_others_are(
    short: int, long: list[int]
) -> None:
    assert reading(*long, short)[-1] <= 2 * ceil(short / MOST)


@given(st.lists(st.integers(1, 5_000), min_size=1, max_size=5), st.integers(0, 200))
def test_a_prompt_waits_for_twice_what_came_before_it_and_never_for_what_comes_later(
    prompts: list[int], later: int
) -> None:
    ends, before = reading(*prompts, later=later), 0
    for tokens, end in zip(prompts, ends, strict=True):
        before += ceil(tokens / MOST)
        assert end <= 2 * before


@pytest.mark.parametrize("token_s", [0.0001, 0.004, 0.02, 0.3])
@pytest.mark.parametrize("pass_s", [0.01, 0.1, 1.0])
def test_a_piece_takes_as_long_as_two_passes_beside_others_and_is_whole_alone(
    token_s: float, pass_s: float
) -> None:
    def takes_s(tokens: int) -> float:
        return pass_s + tokens * token_s

    pieces = Pieces(MOST)
    for _ in range(20):
        rows = pieces.rows(pass_s)
        pieces.observe(rows, takes_s(rows))

    assert takes_s(rows) <= PASSES * pass_s or rows == 1
    assert rows == MOST or takes_s(rows + 2) > PASSES * pass_s
    assert pieces.rows(0.0) == MOST
