"""Kept of answers is the last one to each prompt, a bounded number, for their owner alone."""

from __future__ import annotations

import gc

import msgspec
import pytest

from picospec.edge_agent.proposing.past_answers import (
    MIN_TOKENS,
    PastAnswers,
    PastAnswersByOwner,
)
from picospec.speculation.protocol.messages import MAX_PREDICTED
from tests.edge_agent.engines import FACTS

PROMPT = (1, 2, 3)


V = 1 << 20
OTHER = msgspec.structs.replace(FACTS, vocabulary="another")


class Owner: ...


def test_the_last_answer_to_a_prompt_is_found_by_the_whole_prompt() -> None:
    past = PastAnswers(1000, V)
    past.add(PROMPT, [7, 8, 9])
    past.add(PROMPT, [7, 5])
    past.add((1, 2), [4])

    assert past.to(PROMPT) == (7, 5)
    assert past.to((1, 2)) == (4,)
    assert past.to((2, 3)) == ()


@pytest.mark.parametrize("part", [[], [7], [7, 8, 9]])
def test_an_answer_that_was_cut_short_does_not_replace_the_whole_one(part: list[int]) -> None:
    past = PastAnswers(1000, V)
    past.add(PROMPT, [7, 8, 9])

    past.add(PROMPT, part)

    assert past.to(PROMPT) == (7, 8, 9)


def test_when_there_are_too_many_those_given_longest_ago_leave() -> None:
    past = PastAnswers(3 * MIN_TOKENS, V)
    for prompt in ((1,), (2,), (3,), (1,), (4,)):  # the first is asked again
        past.add(prompt, prompt)

    assert [past.to((n,)) for n in (1, 2, 3, 4)] == [(1,), (), (3,), (4,)]


def test_no_more_tokens_are_kept_than_asked_for() -> None:
    past = PastAnswers(300, V)

    for n in range(200):
        past.add((n % 7,), [n] * (n * 37 % 290))
        kept = [past.to((prompt,)) for prompt in range(7)]
        assert sum(max(len(answer), MIN_TOKENS) for answer in kept if answer) <= 300
    past.add(PROMPT, range(301))

    assert past.to(PROMPT) == ()
    assert past.to((199 % 7,)) == ()


@pytest.mark.parametrize("answer", [[], [5, V], [1 << 40]])
def test_an_answer_that_could_be_no_prediction_takes_no_room(answer: list[int]) -> None:
    past = PastAnswers(MIN_TOKENS, V)
    past.add(PROMPT, [7])

    past.add((4,), answer)

    assert past.to((4,)) == ()
    assert past.to(PROMPT) == (7,)


def test_no_more_is_kept_of_an_answer_than_the_protocol_carries() -> None:
    past = PastAnswers(10 * MAX_PREDICTED, V)

    past.add(PROMPT, range(MAX_PREDICTED + 5))

    assert past.to(PROMPT) == tuple(range(MAX_PREDICTED))


def test_one_owner_never_gets_what_another_was_answered() -> None:
    one, other, answers = Owner(), Owner(), PastAnswersByOwner(1000)

    kept = answers.of(one, FACTS)
    assert kept is not None
    kept.add(PROMPT, [7])

    assert answers.of(one, FACTS) is kept
    for stranger, target in ((other, FACTS), (one, OTHER), (other, FACTS)):
        found = answers.of(stranger, target)
        assert found is not None
        assert found.to(PROMPT) == ()
    assert answers.of(None, FACTS) is None


def test_without_the_setting_nothing_is_kept() -> None:
    assert PastAnswersByOwner(0).of(Owner(), FACTS) is None


def test_what_was_kept_is_gone_with_its_owner() -> None:
    owner, answers = Owner(), PastAnswersByOwner(1000)
    answers.of(owner, FACTS)

    del owner
    gc.collect()

    assert not answers._kept
