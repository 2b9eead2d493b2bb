"""When to draft, and when to send: tables of cases, and what must never go the wrong way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculation.drafting.policy import (
    LONGEST_REST,
    PATIENCE,
    TRIED,
    UNUSED_PATIENCE,
    DraftSettings,
    may_draft,
    rest,
    resting,
    should_flush,
    window,
)
from speculation.drafting.session import DraftingSession
from speculation.proposing.prompt_lookup import Times
from speculation.protocol.messages import Commit, Limits
from speculation.sampling.draft_token import DraftToken

LIMITS = Limits(max_verify=16, max_ahead=64)
SECONDS = st.floats(0.0, 10.0)


@pytest.mark.parametrize(
    ("rtt_s", "pass_s", "draft_s", "tokens"),
    [
        (0.0, 0.0, 0.01, 64),
        (0.01, 0.2, 0.02, 27),
        (0.2, 0.2, 0.02, 36),
        (5.0, 0.2, 0.02, 64),
        (0.2, 0.2, 0.0, 64),
    ],
)
def test_the_window_is_a_pass_and_what_is_drafted_meanwhile(
    rtt_s: float, pass_s: float, draft_s: float, tokens: int
) -> None:
    assert window(LIMITS, Times(rtt_s, pass_s, draft_s)) == tokens


@given(SECONDS, SECONDS, SECONDS, SECONDS)
def test_the_window_grows_with_distance_and_never_over_the_limit(
    rtt_s: float, more_s: float, pass_s: float, draft_s: float
) -> None:
    near = window(LIMITS, Times(rtt_s, pass_s, draft_s))
    far = window(LIMITS, Times(rtt_s + more_s, pass_s, draft_s))

    assert LIMITS.max_verify <= near <= far <= LIMITS.max_ahead


@pytest.mark.parametrize(
    ("survival", "unverified", "expected"),
    [(1.0, 1, True), (0.1, 9, True), (0.099, 1, False), (1.0, 10, False), (0.5, 11, False)],
)
def test_drafting_goes_on_while_the_chain_may_stand_and_there_is_room(
    survival: float, unverified: int, expected: bool
) -> None:
    session = drafted(DraftToken(1, survival), *[DraftToken(1, 1.0)] * (unverified - 1))

    assert may_draft(DraftSettings(), session, Times(0.0, 0.0, 0.0), 10) is expected


@pytest.mark.parametrize(
    ("misses", "tokens"),
    [(0, 0), (PATIENCE - 1, 0), (PATIENCE, 1), (PATIENCE + 3, 8), (10**6, LONGEST_REST)],
)
def test_the_rest_doubles_with_each_miss_beyond_the_patience(misses: int, tokens: int) -> None:
    assert rest(misses) == tokens


@pytest.mark.parametrize(
    ("unused", "committed", "rtt_s", "rests"),
    [
        (UNUSED_PATIENCE, LONGEST_REST - 1, 0.0, False),
        (UNUSED_PATIENCE + 1, LONGEST_REST - 1, 0.0, True),
        (UNUSED_PATIENCE + 1, LONGEST_REST + TRIED - 1, 0.0, False),  # a try
        (UNUSED_PATIENCE + 1, LONGEST_REST + TRIED, 0.0, True),
        (UNUSED_PATIENCE + 20, LONGEST_REST - 1, 1.0, False),  # they may be on their way
        (UNUSED_PATIENCE + 21, LONGEST_REST - 1, 1.0, True),
        (UNUSED_PATIENCE + 21, LONGEST_REST - 5, 1.0, False),  # a try lasts as much longer
        (UNUSED_PATIENCE + TRIED, LONGEST_REST, 0.0, True),  # the first try was in vain
        (UNUSED_PATIENCE + TRIED, 2 * LONGEST_REST, 0.0, False),
        (UNUSED_PATIENCE + 10**6, 2 * LONGEST_REST, 0.0, True),
        (UNUSED_PATIENCE + 10**6, 4 * LONGEST_REST, 0.0, False),
    ],
)
def test_an_edge_whose_right_guesses_nobody_takes_rests_but_for_a_try(
    unused: int, committed: int, rtt_s: float, rests: bool
) -> None:
    session = DraftingSession(max_tokens=1000, stop_tokens=())
    session.receive(Commit(0, 0, (1,) * committed))
    session.unused = unused

    assert resting(DraftSettings(), session, Times(rtt_s, 0.1, 0.01)) is rests
    assert not resting(DraftSettings(), session, Times(rtt_s, 0.0, 0.01))  # no pass was timed


@pytest.mark.parametrize("rests", [True, False])
def test_a_resting_edge_drafts_nothing_unless_it_never_rests(rests: bool) -> None:
    session = DraftingSession(max_tokens=100, stop_tokens=())
    session.misses = PATIENCE

    drafts = may_draft(DraftSettings(rests=rests), session, Times(0.0, 0.1, 0.01), 10)

    assert drafts is not rests


@pytest.mark.parametrize(
    ("unsent", "away", "drafting", "separate", "expected"),
    [
        (0, 0, False, False, False),
        (0, 0, False, True, False),
        (1, 0, True, False, False),
        (1, 0, False, False, True),
        (2, 0, True, False, True),
        (2, 16, True, False, True),
        (2, 17, True, False, False),
        (3, 24, True, False, True),
        (2, 17, False, False, True),
        (1, 0, True, True, True),
        (1, 17, True, True, True),
    ],
)
def test_guesses_are_sent_in_pairs_more_where_many_are_away_and_in_separate_at_once(
    unsent: int, away: int, drafting: bool, separate: bool, expected: bool
) -> None:
    session = drafted(*[RARE] * away)
    session.flush()
    for _ in range(unsent):
        session.extend(RARE)

    sends = should_flush(DraftSettings(), session, drafting=drafting, separate=separate)

    assert (session.unsent, session.away) == (unsent, away)
    assert sends is expected


RARE = DraftToken(1, 0.9)


def drafted(*chain: DraftToken) -> DraftingSession:
    session = DraftingSession(max_tokens=100, stop_tokens=())
    for guess in chain:
        session.extend(guess)
    return session
