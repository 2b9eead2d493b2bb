"""What was answered before is proposed again, to its owner alone, and changes no answer."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from math import inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speculation.drafting.machine import DraftMachine
from speculation.proposing.latencies import Latencies
from speculation.proposing.past_answers import (
    PRIORS,
    PastAnswers,
    PastAnswersByOwner,
    Recall,
    is_worth,
)
from speculation.proposing.prompt_lookup import PromptLookup
from speculation.protocol.messages import TokenId
from speculation.sampling.draft_token import DraftToken
from tests.speculation.joined import Joined
from tests.speculation.repeating import texts
from tests.speculation.small_models import model, opening, plain

PROMPT = (1, 2, 3)
ANSWER = list(range(100, 160))
"""No n-gram is in it twice."""

NO_MODEL = Latencies(rtt_s=0.05, pass_s=0.02, draft_s=inf)
SLOW_PASSES = Latencies(rtt_s=0.05, pass_s=0.2, draft_s=0.02)


def kept(answer: Sequence[TokenId] = ANSWER, *, most_tokens: int = 1000) -> PastAnswers:
    past = PastAnswers(most_tokens)
    past.add(PROMPT, answer)
    return past


def propose(
    recall: Recall, *committed: TokenId, latencies: Latencies = NO_MODEL
) -> TokenId | None:
    recall.follow(committed, ())
    found = recall.propose(latencies)
    assert found is None or found.origin == "past"
    return found and found.token


@pytest.mark.parametrize("latencies", [NO_MODEL, SLOW_PASSES])
def test_the_same_question_is_answered_from_the_first_token_to_the_last(
    latencies: Latencies,
) -> None:
    recall = Recall(kept(), PROMPT, None)
    chain: list[DraftToken] = []

    while True:
        recall.follow([], chain)
        if (found := recall.propose(latencies)) is None:
            break
        chain.append(found)

    assert [drafted.token for drafted in chain] == ANSWER


def test_another_question_with_the_same_answer_is_found_after_three_tokens() -> None:
    recall = Recall(kept(), (9, 9), None)

    found = [propose(recall, *ANSWER[10:end]) for end in range(10, 16)]

    assert found == [None, None, None, *ANSWER[13:16]]


def test_after_a_change_the_answer_is_found_again() -> None:
    changed = [*ANSWER[:20], 1000, 1001, *ANSWER[23:]]
    recall = Recall(kept(), PROMPT, None)

    found = [propose(recall, *changed[:end]) for end in range(26)]

    assert found == [*ANSWER[:21], None, None, None, None, ANSWER[26]]


def test_the_latest_answer_to_a_question_is_meant() -> None:
    past = kept()
    past.add(PROMPT, [7, 8])

    assert propose(Recall(past, PROMPT, None)) == 7


def test_what_is_often_wrong_is_proposed_no_more_where_a_draft_model_is_right() -> None:
    past = kept()
    first = propose(Recall(past, PROMPT, None), latencies=SLOW_PASSES)

    for _ in range(3):  # another answer each time, as at a temperature
        Recall(past, PROMPT, None).follow([5], ())
    again = propose(Recall(past, PROMPT, None), latencies=SLOW_PASSES)

    assert (first, again) == (ANSWER[0], None)


@pytest.mark.parametrize(
    ("right", "drafted", "latencies", "pays"),
    [
        (0.9, 0.6, SLOW_PASSES, True),
        (0.9, 0.9, SLOW_PASSES, True),
        (0.9, 1.0, SLOW_PASSES, False),
        (0.1, 1.0, NO_MODEL, True),
        (0.8, 0.9, Latencies(rtt_s=0.01, pass_s=0.0, draft_s=0.02), False),
        (0.8, 0.9, Latencies(rtt_s=0.01, pass_s=0.02, draft_s=0.02), True),
    ],
)
def test_it_must_be_right_as_often_as_the_draft_model(
    right: float, drafted: float, latencies: Latencies, pays: bool
) -> None:
    assert is_worth(right, drafted, latencies, read_s=0.0) is pays


def test_how_often_the_draft_model_is_right_is_learned_where_it_drafted() -> None:
    past = PastAnswers(100)
    recall = Recall(past, PROMPT, None)
    before = past.drafted.seen

    recall.follow([], [DraftToken(1, 0.9), DraftToken(2, 0.9), DraftToken(3, 0.9)])
    recall.follow([1, 5, 6], [])
    recall.follow([1, 5, 6], [DraftToken(7, 0.9, origin="past")])
    recall.follow([1, 5, 6, 7], [])

    assert past.drafted.seen == before + 2  # the third came after a wrong one


def test_the_text_itself_is_asked_first_where_it_knows_more() -> None:
    own = (*range(100, 120), 50)  # after sixteen of these
    past = kept([*ANSWER[:20], 60])
    recall = Recall(past, own, PromptLookup(own))

    recall.follow(own[:20], ())

    found = recall.propose(NO_MODEL)
    assert found is not None
    assert (found.token, found.origin) == (50, "lookup")


def test_no_more_tokens_are_kept_than_asked_for_and_the_oldest_leave() -> None:
    past = PastAnswers(100)

    for start in range(0, 3000, 30):
        past.add((start,), range(10_000 + start, 10_030 + start))

    assert sum(len(page.tokens) for page in past._pages) <= 100
    assert propose(Recall(past, (2970,), None)) == 12_970
    assert propose(Recall(past, (0,), None)) is None


def test_one_owner_never_gets_what_another_was_answered() -> None:
    class Owner: ...

    one, other = Owner(), Owner()
    answers = PastAnswersByOwner(100)
    for owner in (one, other):
        assert answers.of(owner, "v") is answers.of(owner, "v")

    answers.of(one, "v").add(PROMPT, ANSWER)

    assert propose(Recall(answers.of(one, "v"), PROMPT, None)) == ANSWER[0]
    assert propose(Recall(answers.of(other, "v"), PROMPT, None)) is None
    assert propose(Recall(answers.of(one, "another"), PROMPT, None)) is None
    assert answers.of(None, "v") is None
    assert PastAnswersByOwner(0).of(one, "v") is None


def test_what_was_kept_is_gone_with_its_owner() -> None:
    class Owner: ...

    owner, answers = Owner(), PastAnswersByOwner(100)
    answers.of(owner, "v")

    del owner
    gc.collect()

    assert not answers._kept


@given(answers=st.lists(texts, max_size=4), text=texts, most_tokens=st.integers(0, 60))
@settings(max_examples=200)
def test_a_place_is_one_at_which_the_same_tokens_came_before(
    answers: list[list[int]], text: list[int], most_tokens: int
) -> None:
    past = PastAnswers(most_tokens)
    for answer in answers:
        past.add(PROMPT, answer)
    recall = Recall(past, (9,), None)

    for end in range(1, len(text) + 1):
        recall.follow(text[:end], ())

        if (place := recall._places[-1]) is not None:
            agreed = list(place.page.tokens[place.at - place.agreed : place.at])
            assert place.agreed >= min(PRIORS)
            assert agreed == text[end - place.agreed : end]


@given(
    number=st.integers(0, 2**32),
    right=st.sampled_from([0.0, 0.5, 1.0]),
    disorder=st.integers(0, 300),
    looks_up=st.booleans(),
    replaced=st.booleans(),
    cut=st.integers(0, 30),
    wrong=st.lists(st.integers(0, 6), max_size=8),
)
@settings(max_examples=100)
def test_the_text_never_depends_on_past_answers(
    number: int, right: float, disorder: int, looks_up: bool, replaced: bool, cut: int,
    wrong: list[int],
) -> None:  # fmt: skip
    request = opening(seed=number, max_tokens=30, stop_tokens=())
    text = plain(model(number), request)
    past = PastAnswers(100)
    past.add(request.prompt, [*text[:cut], *wrong, *text[cut:]])

    def recalling(
        *values: object, lookup: PromptLookup | None, **named: object
    ) -> DraftMachine:
        return DraftMachine(*values, lookup=Recall(past, request.prompt, lookup), **named)  # type: ignore[arg-type]

    joined = Joined(
        request, model(number), model(number + 3), Random(number), right,
        looks_up=looks_up, replaced=replaced, make_machine=recalling,
    )  # fmt: skip

    joined.run(disorder)

    assert joined.edge.machine.session.committed == text
