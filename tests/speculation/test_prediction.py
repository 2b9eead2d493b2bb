"""A right prediction costs no draft step, a wrong one soon nothing, and an edit is followed."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speculation.proposing.latencies import Latencies
from speculation.proposing.prediction import SURE, PredictedText, Prediction
from speculation.sampling.draft_token import DraftToken
from tests.speculation.joined import Joined
from tests.speculation.predicted import Predicted
from tests.speculation.small_models import model, opening, plain

NEWLINE = 5
FILE = [token for n in range(20) for token in (*range(100 + 9 * n, 107 + 9 * n), NEWLINE)]
"""Twenty lines of eight tokens; no two share a token but the one that ends them."""

AT = 10 * 8
"""Where the line begins that is edited."""

NEW = [*range(1000, 1007), NEWLINE]
LATENCIES = Latencies(rtt_s=0.01, pass_s=0.02, draft_s=0.01)


def test_a_right_prediction_needs_no_draft_step_and_fills_every_pass() -> None:
    ran = Predicted(FILE, FILE)

    assert ran.steps == []
    assert ran.passes == len(FILE) / 5
    assert ran.prediction.rejected_tokens == 0
    assert ran.prediction.accepted_tokens >= 4 * ran.passes


def test_a_prediction_needs_no_draft_model() -> None:
    ran = Predicted(FILE, FILE, drafts=False)

    assert ran.passes == len(FILE) / 5


EDITS = {
    "a changed token": [*FILE[: AT + 3], 1000, *FILE[AT + 4 :]],
    "a changed line": [*FILE[:AT], *NEW, *FILE[AT + 8 :]],
    "a deleted line": [*FILE[:AT], *FILE[AT + 8 :]],
    "three deleted lines": [*FILE[:AT], *FILE[AT + 24 :]],
    "an inserted line": [*FILE[:AT], *NEW, *FILE[AT:]],
    "a line written twice": [*FILE[: AT + 8], *FILE[AT:]],
    "words before it": [*NEW, *FILE],
}


@pytest.mark.parametrize("answer", EDITS.values(), ids=EDITS.keys())
def test_after_an_edit_it_is_sure_of_its_place_within_three_tokens(answer: list[int]) -> None:
    ran = Predicted(FILE, answer, drafts=False)

    same = max(n for n in range(1, len(FILE) + 1) if answer[-n:] == FILE[-n:])
    edited = len(answer) - same
    found = next(at for epoch, at, right in ran.unread if epoch > 0 and right)
    assert found <= edited + SURE
    assert ran.broken == 1


@pytest.mark.parametrize("answer", EDITS.values(), ids=EDITS.keys())
def test_what_is_new_is_drafted_and_little_more(answer: list[int]) -> None:
    ran = Predicted(FILE, answer)

    assert len(ran.steps) <= len(NEW) + 4
    assert ran.prediction.accepted_tokens > 100


def test_a_wrong_prediction_is_proposed_no_more_after_a_few_rejections() -> None:
    wrong = list(range(5000, 5400))

    ran = Predicted(wrong, FILE)
    none = Predicted([], FILE)

    assert ran.broken == 1
    assert ran.prediction.accepted_tokens == 0
    assert ran.passes <= none.passes + 1
    assert len(ran.steps) <= len(none.steps) + 4


def test_one_that_resembles_the_answer_but_misleads_is_given_up_too() -> None:
    """Every fourth token differs: each time three have agreed, the next is wrong."""
    answer = [7000 + at if at % 4 == 3 else at for at in range(200)]

    ran = Predicted(range(200), answer, drafts=False)

    assert ran.broken <= 2


def test_predicted_tokens_are_counted_once_however_often_they_were_proposed() -> None:
    changed = {20, 60, 100}
    answer = [7000 + at if at in changed else token for at, token in enumerate(FILE)]

    counted = Predicted(FILE, answer).prediction

    assert counted.rejected_tokens == len(changed)
    assert counted.accepted_tokens + counted.rejected_tokens <= len(FILE)
    assert counted.accepted_tokens > 100


def test_what_was_accepted_once_is_not_rejected_when_it_is_proposed_again() -> None:
    answer = [*FILE, *FILE[:12], *NEW]

    counted = Predicted(FILE, answer).prediction

    assert (counted.accepted_tokens, counted.rejected_tokens) == (len(FILE), 0)


def test_of_several_places_it_takes_the_next_one() -> None:
    """The 50 agrees with one token far ahead, which alone moves it nowhere."""
    predicted = [1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 3, 7, 50]
    prediction = Prediction(PredictedText(predicted), None)

    prediction.follow([1, 2, 3, 9, 50, 1, 2, 3], [])
    proposed = prediction.propose(LATENCIES)

    assert proposed is not None
    assert proposed.token == 8


class Other:
    """A Proposer that always has something."""

    def follow(self, *_: object) -> None: ...
    def observe_reading(self, *_: object) -> None: ...
    def propose(self, latencies: Latencies) -> DraftToken:
        return DraftToken(1234, 1.0)

    def ahead(self, latencies: Latencies) -> list[int]:
        return [1234]


@pytest.mark.parametrize("predicted", [[], [1], FILE[:2]])
def test_where_a_prediction_ends_others_propose(predicted: list[int]) -> None:
    prediction = Prediction(PredictedText(predicted), Other())
    prediction.follow(predicted, [])

    proposed = prediction.propose(LATENCIES)

    assert proposed is not None
    assert proposed.token == 1234
    assert prediction.ahead(LATENCIES) == [1234]


def test_where_the_place_is_not_sure_nothing_of_it_is_read() -> None:
    unsure = [9, 50, FILE[4]]

    for other, ahead in ((None, []), (Other(), [1234])):
        prediction = Prediction(PredictedText(FILE), other)
        prediction.follow(unsure, [])
        assert prediction.ahead(LATENCIES) == ahead


@given(
    number=st.integers(0, 2**32),
    right=st.sampled_from([0.0, 0.5, 1.0]),
    disorder=st.integers(0, 300),
    fill=st.sampled_from(["always", "auto", "never"]),
    may_fail=st.booleans(),
    looks_up=st.booleans(),
    cut=st.integers(0, 30),
    wrong=st.lists(st.integers(0, 6), max_size=8),
    whole=st.booleans(),
)
@settings(max_examples=100)
def test_the_text_never_depends_on_the_prediction(
    number: int, right: float, disorder: int, fill: str, may_fail: bool, looks_up: bool,
    cut: int, wrong: list[int], whole: bool,
) -> None:  # fmt: skip
    request = opening(seed=number, max_tokens=30, fill=fill, stop_tokens=())
    text = plain(model(number), request)
    joined = Joined(
        request, model(number), model(number + 3), Random(number), right,
        looks_up=looks_up, may_fail=may_fail,
        predicted=[*text[:cut], *wrong, *text[cut if whole else cut + 2 :]],
    )  # fmt: skip

    joined.run(disorder)

    assert joined.edge.machine.session.committed == joined.session.committed == text
    prediction = joined.edge.prediction
    assert prediction is not None
    assert prediction.accepted_tokens + prediction.rejected_tokens <= len(joined.edge.predicted)
