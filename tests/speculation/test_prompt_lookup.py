"""What was said before is guessed, or read, where that pays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculation.drafting.session import DraftingSession
from speculation.proposing.prompt_lookup import (
    FIRST_TRUST,
    LEAST_GUESSED,
    Lookup,
    Times,
    take,
    worth,
    worth_reading,
)
from speculation.protocol.messages import Commit, TokenId
from speculation.sampling.draft_token import DraftToken
from tests.speculation.repeating import search, texts

COPIED = tuple(range(100, 140))
"""No n-gram stands in it twice."""

LIMITED = Times(rtt_s=0.05, pass_s=0.02, draft_s=0.01)
"""A pass holds two draft steps: drafting is what limits."""

NO_MODEL = Times(rtt_s=0.05, pass_s=0.02, draft_s=inf)


def looking_up(prompt: Sequence[TokenId], *said: TokenId) -> tuple[Lookup, DraftingSession]:
    session = DraftingSession(max_tokens=1000, stop_tokens=(777,))
    if said:
        session.receive(Commit(0, 0, said))
    return Lookup(prompt), session


def go_on(session: DraftingSession, *tokens: TokenId) -> None:
    session.receive(Commit(session.epoch, len(session.committed), tokens))


@given(
    prompt=texts,
    events=st.lists(
        st.tuples(st.sampled_from(["guess", "right", "wrong", "fill"]), st.integers(0, 2)),
        max_size=60,
    ),
)
def test_it_follows_a_session_through_commits_breaks_and_fill_ins(
    prompt: list[int], events: list[tuple[str, int]]
) -> None:
    lookup, session = looking_up(prompt)

    for kind, token in events:
        chain = [guess.token for guess in session.chain]
        if kind == "guess":
            session.extend(DraftToken(token, 1.0))
        elif kind == "right" and chain:
            go_on(session, *chain[: token + 1])
        elif kind == "wrong" and chain:
            go_on(session, *chain[:token], 3)
        elif kind == "fill":
            go_on(session, *chain, token)
        if token:  # else it falls behind
            found = search([*prompt, *session.guessed])
            guess = lookup.guess(session, NO_MODEL)

            guessed = found if found and found.length >= LEAST_GUESSED else None
            assert (guess and guess.token) == (guessed and guessed.token)
            assert lookup._index.tokens == [*prompt, *session.guessed]


def test_a_copy_is_guessed_to_its_end() -> None:
    lookup, session = looking_up((*COPIED, 1, 2), *COPIED[:16])

    drafted = lookup.draft(session, LIMITED, lambda: len(session.chain) < 30)

    assert drafted == 30
    assert [guess.token for guess in session.chain[:26]] == [*COPIED[16:], 1, 2]


def test_nothing_is_guessed_after_a_stop_token() -> None:
    prompt = (*COPIED[:20], 777, *COPIED[20:])
    lookup, session = looking_up(prompt, *COPIED[:18])

    lookup.draft(session, LIMITED, lambda: True)

    assert [guess.token for guess in session.chain] == [118, 119, 777]


def test_the_confidence_is_how_often_matches_of_that_length_were_right() -> None:
    lookup, session = looking_up(COPIED, *COPIED[:3])
    first = lookup.guess(session, NO_MODEL)

    for at in range(3, 7):  # never guessed, and yet they would have been right
        go_on(session, COPIED[at])

    learned = lookup.guess(session, NO_MODEL)
    assert first is not None
    assert learned is not None
    assert first.confidence == FIRST_TRUST[3][0]
    right, seen = FIRST_TRUST[3]
    assert learned.confidence == pytest.approx((right * seen + 4) / (seen + 4))


def test_matches_that_are_wrong_switch_it_off_and_right_ones_on_again() -> None:
    numbers = count(1000)
    lookup, session = looking_up((*COPIED, *COPIED), *COPIED[:16])
    assert lookup.guess(session, LIMITED)

    for _ in range(3):  # sixteen tokens are the same, the next is another
        go_on(session, next(numbers), *COPIED[:16])
    after_three = lookup.guess(session, LIMITED)
    for _ in range(10):
        go_on(session, *COPIED, *COPIED[:16])
    after_many = lookup.guess(session, LIMITED)

    assert after_three is None
    assert after_many is not None


@pytest.mark.parametrize(
    ("times", "pays"),
    [
        (LIMITED, True),
        (Times(0.05, 0.0, 0.01), False),  # no pass seen yet
        (Times(0.05, 0.02, 0.0), False),  # no step seen yet
        (Times(0.05, 0.1, 0.01), False),  # the draft model fills a pass
        (Times(0.8, 0.02, 0.01), False),  # a wrong guess would cost too much
        (Times(0.8, 0.2, inf), True),
    ],
)
def test_a_guess_pays_where_drafting_limits_and_the_way_is_not_too_far(
    times: Times, pays: bool
) -> None:
    assert worth(0.99, times, read_s=0.0) is pays


def test_a_match_likely_to_be_wrong_pays_only_where_there_is_no_draft_model() -> None:
    assert not worth(0.7, LIMITED, read_s=0.0)
    assert worth(0.7, NO_MODEL, read_s=0.0)


def test_a_draft_model_that_reads_as_slowly_as_it_drafts_gains_nothing() -> None:
    slow, fast = looking_up(COPIED, *COPIED[:16])[0], looking_up(COPIED, *COPIED[:16])[0]
    session = looking_up(COPIED, *COPIED[:16])[1]
    slow.read(9, 0.1, 0.01)
    fast.read(9, 0.012, 0.01)

    assert slow.guess(session, LIMITED) is None
    assert fast.guess(session, LIMITED) is not None


def test_a_step_that_read_one_token_or_came_before_any_draft_tells_not_what_reading_costs() -> (
    None
):
    lookup, session = looking_up(COPIED, *COPIED[:16])

    lookup.read(0, 9.9, 0.01)
    lookup.read(9, 9.9, 0.0)

    assert lookup.guess(session, LIMITED) is not None


# --- read, not guessed


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
def test_more_is_read_the_likelier_it_is_said_and_the_less_reading_takes(
    right: float, read_s: float, tokens: int
) -> None:
    assert worth_reading(right, Times(0.05, 0.1, 0.01), read_s=read_s) == tokens


@pytest.mark.parametrize("draft_s", [0.0, inf])
def test_nothing_is_read_ahead_without_a_draft_model_or_before_its_first_step(
    draft_s: float,
) -> None:
    lookup, session = looking_up(COPIED, *COPIED[:16])

    assert lookup.ahead(session, Times(0.05, 0.1, draft_s)) == []


def test_what_is_read_ahead_is_what_followed_to_the_end_of_the_text() -> None:
    lookup, session = looking_up((*COPIED, 1, 2), *COPIED[:16])
    times = Times(0.05, 0.1, 0.01)  # the draft model fills a pass
    assert lookup.guess(session, times) is None

    assert lookup.ahead(session, times) == list(COPIED[16:31])
    for token in COPIED[16:37]:
        session.extend(DraftToken(token, 1.0))
    assert lookup.ahead(session, times) == [*COPIED[37:], 1, 2, *COPIED[:10]]

    repeating, again = looking_up((5, 5, 5, 5))
    assert repeating.ahead(again, times) == [5]  # as many as there are


def test_a_match_too_short_to_guess_by_is_read_where_reading_costs_next_to_nothing() -> None:
    lookup, session = looking_up((7, 1, 2, 3, 4, 5), 7)

    assert lookup.guess(session, NO_MODEL) is None
    assert lookup.ahead(session, LIMITED) == []
    lookup.read(3, 0.0101, 0.01)
    assert lookup.ahead(session, LIMITED) == [1, 2, 3]


def test_of_a_steps_guesses_the_first_is_taken_and_others_while_there_is_room() -> None:
    session = DraftingSession(max_tokens=6, stop_tokens=(777,))
    guesses = [DraftToken(token, 1.0) for token in (1, 2, 3)]

    assert take(session, guesses, lambda: False) == 1
    assert take(session, guesses, lambda: len(session.chain) < 3) == 2
    assert take(session, guesses, lambda: True) == 3  # max_tokens
    ended = DraftingSession(max_tokens=99, stop_tokens=(2,))
    assert take(ended, guesses, lambda: True) == 2


def test_after_a_break_what_the_chain_went_on_with_is_read() -> None:
    lookup, session = looking_up((900, 901))
    for token in range(10, 20):
        session.extend(DraftToken(token, 1.0))
    assert lookup.ahead(session, LIMITED) == []

    go_on(session, 10, 11, 99)  # in place of 12
    assert lookup.ahead(session, LIMITED) == []
    session.extend(DraftToken(13, 1.0))
    assert lookup.ahead(session, LIMITED) == []  # one token the same: too little
    session.extend(DraftToken(14, 1.0))
    assert lookup.ahead(session, LIMITED) == [15, 16, 17, 18, 19]  # to its end

    lookup.read(3, 0.022, 0.01)
    assert lookup.ahead(session, LIMITED) == [15, 16, 17]  # reading is dearer than it seemed


def test_a_chain_that_broke_at_its_last_token_leaves_the_one_before_to_read() -> None:
    lookup, session = looking_up((900, 901))
    for token in range(10, 20):
        session.extend(DraftToken(token, 1.0))
    lookup.ahead(session, LIMITED)
    go_on(session, 99)
    session.extend(DraftToken(11, 1.0))
    lookup.ahead(session, LIMITED)

    go_on(session, 98)
    for token in (12, 13):
        session.extend(DraftToken(token, 1.0))

    assert lookup.ahead(session, LIMITED) == list(range(14, 20))
