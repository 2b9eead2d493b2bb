"""The index finds what a search of the whole text finds."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from time import process_time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from picospec.speculation.ngrams import (
    Index,
    Match,
    PromptGrams,
    keys,
    resumption,
)
from tests.speculation.repeating import search, texts


@given(texts, st.lists(st.tuples(st.integers(0, 60), texts), max_size=5))
def test_a_text_cut_back_is_as_if_the_rest_had_never_been_there(
    text: list[int], edits: list[tuple[int, list[int]]]
) -> None:
    index = Index(text)

    for length, more in edits:
        index.truncate(length)
        text = text[:length] + more
        for token in more:
            index.append(token)

    again = Index(text)
    assert (index.tokens, index._after, index._replaced, index._ending) == (
        again.tokens, again._after, again._replaced, again._ending,
    )  # fmt: skip


@given(texts, st.lists(st.tuples(st.integers(0, 60), texts), max_size=5))
def test_matches_behind_a_prompt_are_those_of_the_whole_text(
    prompt: list[int], edits: list[tuple[int, list[int]]]
) -> None:
    index, text = Index(prompt=PromptGrams(prompt)), list(prompt)

    assert index.match() == search(text)
    for length, more in edits:
        index.truncate(len(prompt) + length)
        text = text[: len(prompt) + length]
        for token in more:
            text.append(token)
            index.append(token)
            assert index.match() == search(text)
            assert index.keys == keys(text)


@pytest.mark.parametrize("length", [0, 1, 2, 17, 9000])
def test_the_n_grams_of_a_prompt_are_those_of_a_text_that_grew(length: int) -> None:
    chance = Random(length)
    prompt = [chance.randrange(4) for _ in range(length)]

    places = chance.sample(range(length + 1), min(length, 50))

    behind, grown = (
        [made(tokens).match() for tokens in (prompt[:at] for at in places)]
        for made in (lambda tokens: Index(prompt=PromptGrams(tokens)), Index)
    )

    assert behind == grown


def test_the_n_grams_of_a_long_prompt_take_little_longer_than_its_tokens() -> None:
    """A verifier makes them in the thread that starts passes."""
    chance = Random(1)
    prompt = tuple(chance.randrange(150_000) for _ in range(8192))

    def least_s(make: Callable[[], object]) -> float:
        def took_s() -> float:
            began = process_time()
            make()
            return process_time() - began

        return min(took_s() for _ in range(20))

    assert least_s(lambda: PromptGrams(prompt)) < 15 * least_s(lambda: np.array(prompt))


@pytest.mark.parametrize(
    ("dropped", "text", "at", "place"),
    [
        ([5, 6, 7, 8], [1, 2, 9], 2, None),  # 9 in place of 5
        ([5, 6, 7, 8], [1, 2, 9, 6], 2, Match(7, 2, 1)),
        ([5, 6, 7, 8], [1, 2, 9, 6, 7], 2, Match(8, 3, 2)),
        ([5, 6, 7, 8], [1, 2, 6], 2, Match(7, 2, 1)),  # 5 left out
        ([5, 6, 7, 8], [1, 2, 9, 5], 2, Match(6, 1, 1)),  # 9 put in
        ([5, 6, 7, 8], [1, 2, 9, 6, 7, 8], 2, None),  # its end
        ([5, 1, 2, 3, 4, 8], [0, 9, 1, 2, 3, 4], 1, Match(8, 5, 3)),
        ([5, 6, 7, 6, 8, 6, 9], [0, 4, 3, 2, 6], 1, Match(8, 4, 1)),  # the nearest of three
        ([5, 6, 7, 6, 8, 7, 6, 9], [0, 4, 3, 7, 6], 1, Match(8, 4, 2)),
        ([5, 6, 7, 1, 6, 8], [0, 4, 1, 6], 1, Match(8, 5, 2)),  # more agreed, not nearer
        ([], [1, 2], 0, None),
    ],
)
def test_a_chain_that_broke_goes_on_where_most_is_the_same_then_nearest(
    dropped: list[int], text: list[int], at: int, place: Match | None
) -> None:
    assert resumption(dropped, text, at, most=3) == place
