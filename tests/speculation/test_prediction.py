"""A right prediction fills every pass, a wrong one soon takes no rows; edits are followed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speculation.judge import Judgement
from speculation.messages import Open, Sampling
from speculation.model_facts import Limits, TokenId
from speculation.prediction import SURE, Prediction
from speculation.verify_session import VerifyingSession
from tests.speculation.joined import joining
from tests.speculation.small_models import model, opening, plain

LIMITS = Limits(max_verify=4, max_ahead=16)


@dataclass
class Alone:
    """It generates `answer` where no edge drafts, and a pass judges four draft tokens."""

    answer: Sequence[TokenId]
    predicted: Sequence[TokenId] = ()
    prompt: Sequence[TokenId] = (1,)
    passes: int = 0
    judged: list[tuple[int, bool]] = field(default_factory=list)
    """The positions of draft tokens that were reached, and whether each was right."""

    def __post_init__(self) -> None:
        request = Open(
            "m", "v", tuple(self.prompt), Sampling(), 0, len(self.answer), (),
            ngram_drafts=True, predicted=tuple(self.predicted),
        )  # fmt: skip
        self.session = VerifyingSession(request, LIMITS, vocabulary_size=10**6, u=iter(()))
        while not self.session.finished:
            self._pass()

    @property
    def wrong(self) -> int:
        return sum(not right for _, right in self.judged)

    def _pass(self) -> None:
        self.passes += 1
        drafts = len(self.session.plan(LIMITS.max_verify))
        start, draft = len(self.session.committed), self.session.begin(drafts).draft
        accepted = 0
        for token in draft:
            right = token == self.answer[start + accepted]
            self.judged.append((start + accepted, right))
            if not right:
                break
            accepted += 1
        tokens = tuple(self.answer[start : start + accepted + 1])
        self.session.resolve(Judgement(tokens, accepted))


NEWLINE = 5
FILE = [token for n in range(20) for token in (*range(100 + 9 * n, 107 + 9 * n), NEWLINE)]
"""Twenty lines of eight tokens; no two share a token but the one that ends them."""

AT = 10 * 8
"""Where the line begins that is edited."""

NEW = [*range(1000, 1007), NEWLINE]


def test_a_right_prediction_fills_every_pass() -> None:
    ran = Alone(FILE, FILE)

    assert ran.passes == len(FILE) / 5
    assert ran.session.totals.verifier_accepted == ran.session.totals.judged == 4 * ran.passes


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
    prediction = Prediction(FILE)

    same = max(n for n in range(1, len(FILE) + 1) if answer[-n:] == FILE[-n:])
    prediction.follow(answer[: len(answer) - same + SURE])

    assert list(prediction.continuation(4).tokens) == answer[len(answer) - same + SURE :][:4]


@pytest.mark.parametrize("answer", EDITS.values(), ids=EDITS.keys())
def test_an_edit_takes_few_passes_more_than_its_new_tokens(answer: list[int]) -> None:
    ran = Alone(answer, FILE)

    assert ran.passes <= len(answer) / 5 + len(NEW) + 4
    assert ran.session.totals.verifier_accepted > 100


def test_a_wrong_prediction_is_tried_once() -> None:
    ran = Alone(FILE, range(5000, 5400))

    assert next(position for position, right in ran.judged if not right) == 0
    assert ran.wrong <= Alone(FILE).wrong + 1


def test_one_that_resembles_the_answer_but_misleads_is_trusted_no_more() -> None:
    """Every fourth token differs: each time three have agreed, the next is wrong."""
    answer = [7000 + at if at % 4 == 3 else at for at in range(200)]
    prediction = Prediction(range(200))

    prediction.follow(answer)

    assert prediction.continuation(4).precision.right < 0.1


def test_predicted_tokens_are_counted_once() -> None:
    changed = {20, 60, 100}
    answer = [7000 + at if at in changed else token for at, token in enumerate(FILE)]
    prediction = Prediction(FILE)

    prediction.follow([*answer, *answer[:40]])

    assert prediction.rejected_tokens == len(changed)
    assert prediction.accepted_tokens + prediction.rejected_tokens == len(FILE)


def test_nothing_of_a_wrong_prediction_is_accepted() -> None:
    prediction = Prediction([*range(5000, 5100), *FILE[:2]])

    prediction.follow(FILE)

    assert prediction.accepted_tokens == 0


def test_of_several_places_it_takes_the_next_one() -> None:
    """The 50 agrees with one token far ahead, which alone moves it nowhere."""
    prediction = Prediction([1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 3, 7, 50])

    prediction.follow([1, 2, 3, 9, 50, 1, 2, 3])

    assert prediction.continuation(1).tokens == (8,)


@pytest.mark.parametrize("predicted", [[], [1], FILE[:2]])
def test_where_a_prediction_ends_it_has_nothing(predicted: list[int]) -> None:
    prediction = Prediction(predicted)

    prediction.follow(predicted)

    assert not prediction.continuation(4).tokens


def test_drafts_that_were_followed_and_dropped_leave_no_trace() -> None:
    prediction = Prediction(FILE)
    prediction.follow(FILE[:10], [7, 7, 7])

    prediction.follow(FILE[:14])

    assert list(prediction.continuation(3).tokens) == FILE[14:17]


def test_its_rates_are_learned_from_every_token_of_the_text() -> None:
    """A prompt whose line came once as a lure: the answer never repeats it."""
    answer = [token for n in range(60) for token in (11, 12, 13, 1000 + n)]

    ran = Alone(answer, prompt=range(11, 17))

    assert ran.wrong < 60


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
    replaced=st.booleans(),
)
@settings(max_examples=150)
def test_the_text_never_depends_on_the_verifiers_own_drafts(
    number: int,
    disorder: int,
    fill: str,
    cut: int,
    wrong: list[int],
    whole: bool,
    **ends: object,
) -> None:
    request = opening(seed=number, max_tokens=30, fill=fill, stop_tokens=())
    text = plain(model(number), request)
    predicted = (*text[:cut], *wrong, *text[cut if whole else cut + 2 :])
    asked = replace(request, ngram_drafts=True, predicted=predicted)
    joined = joining(asked, number, **ends)  # type: ignore[arg-type]

    joined.run(disorder)

    assert joined.edge.machine.session.committed == joined.session.committed == text
