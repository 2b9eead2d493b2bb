"""What was written before is proposed unread, or read ahead, where that pays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speculation.draft_token import DraftToken
from speculation.drafting import DraftingSession
from speculation.lookup import (
    MATCH_PRIORS,
    MIN_UNREAD_LENGTH,
    PromptLookup,
    ahead_size,
    pays_unread,
)
from speculation.messages import Commit
from speculation.model_facts import TokenId
from speculation.proposer import Latencies
from tests.speculation.edges import chain_of
from tests.speculation.small_models import search, texts

COPIED = tuple(range(100, 140))
"""No n-gram is in it twice."""

LIMITED = Latencies(rtt_s=0.05, pass_s=0.02, draft_s=0.01)
"""A pass holds two draft steps: drafting is what limits."""

NO_MODEL = Latencies(rtt_s=0.05, pass_s=0.02, draft_s=inf)


class Answer:
    """It is a session with the lookup that follows it."""

    def __init__(self, prompt: Sequence[TokenId], *text: TokenId) -> None:
        self.session = DraftingSession(max_tokens=1000, stop_tokens=(777,))
        self.lookup = PromptLookup(prompt)
        self.commit(*text)

    def commit(self, *tokens: TokenId) -> None:
        session = self.session
        session.receive(Commit(session.epoch, len(session.committed), tokens))

    def draft(self, *tokens: TokenId) -> None:
        for token in tokens:
            self.session.extend(DraftToken(token, 1.0))

    def propose(self, latencies: Latencies) -> DraftToken | None:
        self.lookup.follow(self.session.committed, self.session.chain)
        return self.lookup.propose(latencies)

    def ahead(self, latencies: Latencies) -> list[TokenId]:
        self.lookup.follow(self.session.committed, self.session.chain)
        return self.lookup.ahead(latencies)


EVENTS = ["draft", "draft", "draft", "right", "lower", "higher", "fill"]
"""Lower and higher tokens than that of the chain are wrong."""


@given(
    prompt=texts,
    events=st.lists(
        st.tuples(st.sampled_from(EVENTS), st.integers(0, 2)), min_size=4, max_size=60
    ),
)
@settings(max_examples=300)
def test_it_follows_a_session_through_commits_breaks_and_fill_ins(
    prompt: list[int], events: list[tuple[str, int]]
) -> None:
    answer = Answer(prompt)

    for kind, token in events:
        chain = chain_of(answer.session)
        if kind == "draft":
            answer.draft(1 + token)
        elif kind == "right" and chain:
            answer.commit(*chain[: token + 1])
        elif kind in ("lower", "higher") and chain:
            answer.commit(*chain[:token], 0 if kind == "lower" else 4)
        elif kind == "fill":
            answer.commit(*chain, token)
        if token:  # else it lags
            text = [*prompt, *answer.session.context]
            found, proposed = search(text), answer.propose(NO_MODEL)

            expected = found if found and found.length >= MIN_UNREAD_LENGTH else None
            assert (proposed and proposed.token) == (expected and expected.token)
            assert answer.lookup._index.tokens == text


def test_the_confidence_is_how_often_matches_of_that_length_were_right() -> None:
    answer = Answer(COPIED, *COPIED[:3])
    first = answer.propose(NO_MODEL)

    for at in range(3, 7):  # never proposed, and yet they would have been right
        answer.commit(COPIED[at])

    learned = answer.propose(NO_MODEL)
    assert first is not None
    assert learned is not None
    assert first.confidence == MATCH_PRIORS[3][0]
    right, seen = MATCH_PRIORS[3]
    assert learned.confidence == pytest.approx((right * seen + 4) / (seen + 4))


def test_matches_that_are_wrong_switch_it_off_and_right_ones_on_again() -> None:
    numbers = count(1000)
    answer = Answer((*COPIED, *COPIED), *COPIED[:16])
    assert answer.propose(LIMITED)

    for _ in range(3):  # sixteen tokens are the same, the next is another
        answer.commit(next(numbers), *COPIED[:16])
    assert answer.propose(LIMITED) is None
    for _ in range(10):
        answer.commit(*COPIED, *COPIED[:16])

    assert answer.propose(LIMITED) is not None


@pytest.mark.parametrize(
    ("confidence", "latencies", "pays"),
    [
        (0.99, LIMITED, True),
        (0.99, Latencies(0.05, 0.0, 0.01), False),  # no pass seen yet
        (0.99, Latencies(0.05, 0.02, 0.0), False),  # no step seen yet
        (0.99, Latencies(0.05, 0.1, 0.01), False),  # the draft model fills a pass
        (0.99, Latencies(0.8, 0.02, 0.01), False),  # a wrong token would cost too much
        (0.7, LIMITED, False),  # a wrong one is likely
        (0.7, NO_MODEL, True),
        (0.99, Latencies(0.8, 0.2, inf), True),
    ],
)
def test_an_unread_token_pays_where_drafting_limits_and_a_wrong_one_costs_little(
    confidence: float, latencies: Latencies, pays: bool
) -> None:
    assert pays_unread(confidence, latencies, read_s=0.0) is pays


def test_a_draft_model_that_reads_as_slowly_as_it_drafts_gains_nothing() -> None:
    slow, fast = Answer(COPIED, *COPIED[:16]), Answer(COPIED, *COPIED[:16])
    slow.lookup.observe_reading(9, 0.1, 0.01)
    fast.lookup.observe_reading(9, 0.012, 0.01)

    assert slow.propose(LIMITED) is None
    assert fast.propose(LIMITED) is not None


def test_a_step_over_one_token_or_before_any_other_teaches_no_reading_time() -> None:
    answer = Answer(COPIED, *COPIED[:16])

    answer.lookup.observe_reading(0, 9.9, 0.01)
    answer.lookup.observe_reading(9, 9.9, 0.0)

    assert answer.propose(LIMITED) is not None


@pytest.mark.parametrize(
    ("right", "read_s", "tokens"),
    [
        (1.0, 0.005, 15),
        (0.9, 0.005, 7),
        (0.7, 0.005, 3),
        (0.7, 0.001, 7),
        (0.7, 0.008, 0),
        (0.2, 0.005, 0),
        (1.0, 0.02, 0),  # slower than drafting
    ],
)
def test_more_is_read_the_likelier_it_is_right_and_the_less_reading_takes(
    right: float, read_s: float, tokens: int
) -> None:
    assert ahead_size(right, Latencies(0.05, 0.1, 0.01), read_s=read_s) == tokens


@pytest.mark.parametrize("draft_s", [0.0, inf])
def test_nothing_is_read_ahead_without_a_draft_model_or_before_its_first_step(
    draft_s: float,
) -> None:
    assert Answer(COPIED, *COPIED[:16]).ahead(Latencies(0.05, 0.1, draft_s)) == []


def test_what_is_read_ahead_is_what_followed_to_the_end_of_the_text() -> None:
    answer = Answer((*COPIED, 1, 2), *COPIED[:16])
    latencies = Latencies(0.05, 0.1, 0.01)  # the draft model fills a pass
    assert answer.propose(latencies) is None

    assert answer.ahead(latencies) == list(COPIED[16:31])
    answer.draft(*COPIED[16:37])
    assert answer.ahead(latencies) == [*COPIED[37:], 1, 2, *COPIED[:10]]

    assert Answer((5, 5, 5, 5)).ahead(latencies) == [5]  # as many as there are


def test_a_match_too_short_to_propose_is_read_where_reading_costs_next_to_nothing() -> None:
    answer = Answer((7, 1, 2, 3, 4, 5), 7)

    assert answer.propose(NO_MODEL) is None
    assert answer.ahead(LIMITED) == []
    answer.lookup.observe_reading(3, 0.0101, 0.01)
    assert answer.ahead(LIMITED) == [1, 2, 3]


def test_after_a_break_what_the_chain_went_on_with_is_read() -> None:
    answer = Answer((900, 901))
    answer.draft(*range(10, 20))
    assert answer.ahead(LIMITED) == []

    answer.commit(10, 11, 99)  # in place of 12
    assert answer.ahead(LIMITED) == []
    answer.draft(13)
    assert answer.ahead(LIMITED) == []  # one token the same: too little
    answer.draft(14)
    assert answer.ahead(LIMITED) == [15, 16, 17, 18, 19]  # to its end

    answer.lookup.observe_reading(3, 0.022, 0.01)
    assert answer.ahead(LIMITED) == [15, 16, 17]  # reading is dearer than it seemed


def test_a_chain_that_broke_at_its_last_token_leaves_the_one_before_to_read() -> None:
    answer = Answer((900, 901))
    answer.draft(*range(10, 20))
    answer.ahead(LIMITED)
    answer.commit(99)
    answer.draft(11)
    answer.ahead(LIMITED)

    answer.commit(98)
    answer.draft(12, 13)

    assert answer.ahead(LIMITED) == list(range(14, 20))
