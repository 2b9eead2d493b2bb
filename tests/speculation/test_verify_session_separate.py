"""In `separate` nothing is committed between a rejection and the recovered token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import pytest
from picospec.speculation.sampling.judging import Judgement, Rejection

from picospec.speculation.protocol.errors import RemoteProtocolError
from picospec.speculation.protocol.messages import Commit, Draft, Finish, Redraw, Reject
from picospec.speculation.sampling.distributions import Q_SCALE
from picospec.speculation.verifying.session import MAX_REDRAWS, VerifyingSession
from tests.speculation.verify_sessions import P, begin, rejecting, session


def test_a_rejection_is_sent_and_nothing_of_its_epoch_is_kept() -> None:
    verifier = session("separate")
    verifier.receive(Draft(0, 0, 0, (7, 1, 5), (9, 9, 9)))
    begin(verifier)

    commit, reject = verifier.resolve(Judgement((7,), 1, Rejection(1, P)), u=repeat(0.5))

    assert isinstance(commit, Commit)
    assert isinstance(reject, Reject)
    assert (commit.tokens, reject.position) == ((7,), 1)
    assert verifier.receive(Draft(0, 3, 3, (6,), (9,))) == []
    assert verifier.pending == 0


def test_a_recovered_token_is_committed_at_once_and_what_follows_it_is_drafted() -> None:
    verifier = rejecting(7)

    (commit,) = verifier.receive(Draft(1, 1, 0, (2, 5, 6), (9, 9), True))

    assert isinstance(commit, Commit)
    assert (commit.start, commit.tokens, commit.accepted) == (1, (2,), 0)
    assert begin(verifier).draft == (5, 6)


def test_a_recovered_token_counts_once() -> None:
    verifier = rejecting(7)
    forced = Draft(1, 1, 0, (2,), (), True)
    verifier.receive(forced)

    assert verifier.receive(forced) == []

    assert verifier.committed == [7, 2]


def test_a_repeated_recovered_token_does_not_answer_the_next_rejection() -> None:
    verifier = rejecting(7)
    verifier.receive(Draft(1, 1, 0, (2, 1), (Q_SCALE,), True))
    begin(verifier)
    verifier.resolve(Judgement((), 0, Rejection(1, P)))

    for epoch in (1, 2):  # late, or as no honest edge would send it
        assert verifier.receive(Draft(epoch, 1, 0, (2,), (), True)) == []

    assert verifier.committed == [7, 2]
    assert verifier.rejection


def test_a_recovered_token_may_end_the_answer() -> None:
    verifier = session("separate", max_tokens=1)
    verifier.receive(Draft(0, 0, 0, (1,), (Q_SCALE,)))
    begin(verifier)
    verifier.rejection = Rejection(1, P)

    _, finish = verifier.receive(Draft(1, 0, 0, (2,), (), True))

    assert isinstance(finish, Finish)
    assert finish.reason == "length"


def redraw(verifier: VerifyingSession, epoch: int, position: int) -> Sequence[Any]:
    return verifier.receive(Redraw(epoch, position), repeat(0.5))


def test_a_redraw_is_answered_once_with_its_own_epoch() -> None:
    verifier = rejecting(7)

    (again,) = redraw(verifier, 1, 1)

    assert (again.epoch, again.position) == (1, 1)
    assert redraw(verifier, 1, 1) == []
    assert redraw(verifier, 0, 1) == []


def test_a_redraw_where_nothing_is_awaited_is_dropped() -> None:
    assert redraw(session("separate"), 5, 0) == []
    assert redraw(session(), 5, 0) == []
    assert redraw(rejecting(7), 5, 0) == []


def test_one_rejection_is_redrawn_so_many_times_and_no_more() -> None:
    verifier = rejecting(7)
    for epoch in range(1, MAX_REDRAWS + 1):
        assert redraw(verifier, epoch, 1)

    with pytest.raises(RemoteProtocolError, match="Redraw"):
        redraw(verifier, MAX_REDRAWS + 1, 1)


def test_drafts_of_an_epoch_that_a_redraw_began_are_void() -> None:
    early, late = rejecting(), rejecting()
    draft = Draft(1, 1, 1, (5,), (9,))

    early.receive(draft)
    redraw(early, 1, 0)
    redraw(late, 1, 0)
    late.receive(draft)

    for verifier in (early, late):
        verifier.receive(Draft(2, 0, 0, (2,), (), True))
        assert begin(verifier).draft == ()
