"""In `separate` a rejected token waits for its replacement, and nothing else is said."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import pytest

from speculation.protocol.errors import RemoteProtocolError
from speculation.protocol.messages import Commit, Draft, Finish, Redraw, Reject
from speculation.sampling.distributions import Q_SCALE
from speculation.sampling.judging import Judgement, Rejection
from speculation.verifying.session import MOST_REDRAWS, VerifyingSession
from tests.speculation.verifiers import P, refusing, session


def test_a_refusal_is_told_and_nothing_of_its_epoch_is_kept() -> None:
    verifier = session("separate")
    verifier.receive(Draft(0, 0, 0, (7, 1, 5), (9, 9, 9)))
    verifier.begin(16)

    commit, reject = verifier.resolve(Judgement((7,), 1, Rejection(1, P)), u=repeat(0.5))

    assert isinstance(commit, Commit)
    assert isinstance(reject, Reject)
    assert (commit.tokens, reject.position) == ((7,), 1)
    assert verifier.receive(Draft(0, 3, 3, (6,), (9,))) == []
    assert verifier.pending == 0


def test_a_replacement_is_committed_at_once_and_what_follows_it_is_drafted() -> None:
    verifier = refusing(7)

    (commit,) = verifier.receive(Draft(1, 1, 0, (2, 5, 6), (9, 9), True))

    assert isinstance(commit, Commit)
    assert (commit.start, commit.tokens, commit.accepted) == (1, (2,), 0)
    assert verifier.begin(16).draft == (5, 6)


def test_a_replacement_counts_once() -> None:
    verifier = refusing(7)
    forced = Draft(1, 1, 0, (2,), (), True)
    verifier.receive(forced)

    assert verifier.receive(forced) == []

    assert verifier.committed == [7, 2]


def test_a_repeated_replacement_does_not_answer_the_next_refusal() -> None:
    verifier = refusing(7)
    verifier.receive(Draft(1, 1, 0, (2, 1), (Q_SCALE,), True))
    verifier.begin(16)
    verifier.resolve(Judgement((), 0, Rejection(1, P)))

    for epoch in (1, 2):  # late, or as no honest edge would send it
        assert verifier.receive(Draft(epoch, 1, 0, (2,), (), True)) == []

    assert verifier.committed == [7, 2]
    assert verifier.rejection


def test_a_replacement_may_end_the_answer() -> None:
    verifier = session("separate", max_tokens=1)
    verifier.receive(Draft(0, 0, 0, (1,), (Q_SCALE,)))
    verifier.begin(16)
    verifier.rejection = Rejection(1, P)

    _, finish = verifier.receive(Draft(1, 0, 0, (2,), (), True))

    assert isinstance(finish, Finish)
    assert finish.reason == "length"


def redraw(verifier: VerifyingSession, epoch: int, position: int) -> Sequence[Any]:
    return verifier.receive(Redraw(epoch, position), repeat(0.5))


def test_a_redraw_is_answered_once_with_its_own_epoch() -> None:
    verifier = refusing(7)

    (again,) = redraw(verifier, 1, 1)

    assert (again.epoch, again.position) == (1, 1)
    assert redraw(verifier, 1, 1) == []
    assert redraw(verifier, 0, 1) == []


def test_a_redraw_where_nothing_is_awaited_is_dropped() -> None:
    assert redraw(session("separate"), 5, 0) == []
    assert redraw(session(), 5, 0) == []
    assert redraw(refusing(7), 5, 0) == []


def test_one_refusal_is_redrawn_so_many_times_and_no_more() -> None:
    verifier = refusing(7)
    for epoch in range(1, MOST_REDRAWS + 1):
        assert redraw(verifier, epoch, 1)

    with pytest.raises(RemoteProtocolError, match="Redraw"):
        redraw(verifier, MOST_REDRAWS + 1, 1)


def test_drafts_of_an_epoch_that_a_redraw_began_are_void() -> None:
    early, late = refusing(), refusing()
    draft = Draft(1, 1, 1, (5,), (9,))

    early.receive(draft)
    redraw(early, 1, 0)
    redraw(late, 1, 0)
    late.receive(draft)

    for verifier in (early, late):
        verifier.receive(Draft(2, 0, 0, (2,), (), True))
        assert verifier.begin(16).draft == ()
