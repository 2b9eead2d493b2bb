"""The index finds what a search of the whole text finds."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from math import inf
from random import Random
from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speculation.answer_cache import ANSWER_CACHE_LENGTHS, CONTEXT, AnswerCache
from speculation.lookup import PromptLookup
from speculation.ngrams import Index, Match, PromptGrams, keys, resumption
from speculation.proposer import Latencies
from tests.speculation.small_models import search, texts


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

    offset, grown = (
        [made(tokens).match() for tokens in (prompt[:at] for at in places)]
        for made in (lambda tokens: Index(prompt=PromptGrams(tokens)), Index)
    )

    assert offset == grown


@pytest.mark.long
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


# A cache continues a text as the answers that it holds did, and holds a bounded number.

TEXTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), max_size=20),
        st.lists(st.integers(0, 2), min_size=1, max_size=40),
    ),
    max_size=5,
)
UNDRAFTED = Latencies(rtt_s=0.05, pass_s=0.07, draft_s=inf)
READING = Latencies(rtt_s=0.05, pass_s=0.2, draft_s=0.02)
PROMPT = tuple(range(30))
ANSWER = tuple(range(50, 90))


def kept(prompt: list[int], answer: list[int]) -> list[int]:
    return [*prompt[-CONTEXT:], *answer]


@given(TEXTS, st.lists(st.integers(0, 2), max_size=40), st.sampled_from([50, 1 << 20]))
@settings(max_examples=200)
def test_a_match_is_the_longest_that_an_answer_went_on_from_unless_it_was_overwritten(
    texts: list[tuple[list[int], list[int]]], text: list[int], room: int
) -> None:
    answer_cache, went_on = AnswerCache(room), set[tuple[int, ...]]()
    for prompt, answer in texts:
        answer_cache.add(prompt, answer)
        held = kept(prompt, answer)
        went_on |= {
            tuple(held[at - n : at + 1])
            for n in ANSWER_CACHE_LENGTHS
            for at in range(n, len(held))
        }

    found = answer_cache.match(text)

    ends = [tuple(text[-n:]) for n in ANSWER_CACHE_LENGTHS if n <= len(text)]
    known = [gram for gram in ends if any(each[:-1] == gram for each in went_on)]
    if room > 50:
        assert (found and found.length) == (len(known[0]) if known else None)
    if found:
        assert (*text[-found.length :], found.token) in went_on
        assert len(answer_cache.following(found.at, 1000)) <= room


def test_an_answer_is_expected_again_after_its_prompt_or_one_that_ends_alike() -> None:
    answer_cache = AnswerCache(1000)
    answer_cache.add(PROMPT, ANSWER)

    assert answer_cache.expected(PROMPT, 1000) == ANSWER
    assert answer_cache.expected((99, *PROMPT[1:]), 4) == ANSWER[:4]
    assert answer_cache.expected((*PROMPT, 7), 1000) == ANSWER[1:]
    assert answer_cache.expected(range(7, 14), 1000) == ()


def test_of_prompts_that_end_alike_the_most_similar_has_its_answer_expected() -> None:
    answer_cache, end = AnswerCache(1000), tuple(range(200, 220))
    for n in range(3):
        answer_cache.add((*range(50 * n, 50 * n + 30), *end), range(1000 * n, 1000 * n + 50))

    assert answer_cache.expected((*range(50, 80), *end), 2) == (1000, 1001)
    assert answer_cache.expected((*range(500, 530), *end), 2) == ()


@pytest.mark.parametrize("part", [0, 1, 40])
def test_an_answer_that_was_cut_short_does_not_replace_the_whole_one(part: int) -> None:
    answer_cache = AnswerCache(1000)
    answer_cache.add(PROMPT, ANSWER)

    answer_cache.add(PROMPT, ANSWER[:part])

    assert answer_cache.expected(PROMPT, 1000) == ANSWER


def test_the_latest_answer_is_expected_and_the_oldest_leaves_first() -> None:
    answer_cache = AnswerCache(150)
    answer_cache.add(PROMPT, ANSWER)
    answer_cache.add(PROMPT, ANSWER[::-1])
    assert answer_cache.expected(PROMPT, 1000) == ANSWER[::-1]

    for n in range(3):
        answer_cache.add(range(100 * n, 100 * n + 20), range(1000 * n, 1000 * n + 50))

    assert answer_cache.expected(PROMPT, 1000) == ()
    assert len(answer_cache.expected(range(200, 220), 1000)) == 50


def test_a_token_of_32_conversations_of_16k_tokens_takes_at_most_20_bytes() -> None:
    tracemalloc.start()
    try:
        answer_cache = AnswerCache(32 * 16_384)
        for n in range(40):
            answer_cache.add(PROMPT, range(n, n + 16_000))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert held <= 32 * 16_384 * 21


def test_what_the_cache_knows_is_proposed_unread_and_never_read_ahead() -> None:
    answer_cache = AnswerCache(1000)
    answer_cache.add(PROMPT, ANSWER)
    lookup = PromptLookup(ANSWER[:20], answer_cache=answer_cache)

    found = lookup.propose(UNDRAFTED)

    assert found is not None
    assert (found.token, found.origin) == (ANSWER[20], "lookup")
    assert lookup.ahead(READING) == []


def test_a_cache_that_is_wrong_is_soon_believed_no_more() -> None:
    answer_cache = AnswerCache(1000)
    answer_cache.add(PROMPT, ANSWER)
    lookup = PromptLookup(ANSWER[:20], answer_cache=answer_cache)
    first = lookup.propose(UNDRAFTED)

    lookup.follow([1], [])
    lookup.follow([1, *ANSWER[20:36]], [])
    then = lookup.propose(UNDRAFTED)

    assert first is not None
    assert then is not None
    assert then.confidence < first.confidence
