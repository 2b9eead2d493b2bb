"""A branch that the text takes is the next chain, at both ends; any other changes nothing."""

from __future__ import annotations

import pytest

from speculation.branches import Growing
from speculation.drafting import DraftingSession
from speculation.guess import Guess
from speculation.messages import Branch, Commit, Draft
from tests.speculation.edges import STOP, edge
from tests.speculation.verifiers import say, session

# --- at the edge


def branching(*, sent: bool) -> DraftingSession:
    """A chain 4 5 6 and, should 5 be a 7, the branch 7 8 9."""
    session = edge()
    session.extend(Guess(4, 0.5))
    session.extend(Guess(5, 0.5, others=((7, 0.3), (STOP, 0.2))))
    session.extend(Guess(6, 0.5))
    branch = session.branches.best(session.chain, 0, least=0.1, may_grow=session.may_grow)
    assert branch is not None
    for token in (8, 9):
        session.branches.grow(branch, Guess(token, 0.5))
    assert session.guessed_in(branch) == [4, 7, 8, 9]
    session.flush()
    if sent:
        assert session.branch_off(branch) == Branch(0, 1, (7, 8, 9))
        assert not session.may_grow(branch)
    return session


def test_a_branch_that_the_verifier_took_is_the_chain_and_need_not_be_sent() -> None:
    session = branching(sent=True)

    assert session.receive(Commit(1, 0, (4, 7))).broken

    assert (session.epoch, session.guessed, session.unsent) == (1, [4, 7, 8, 9], 0)
    session.extend(Guess(10, 0.5))
    assert session.flush() == Draft(1, 4, 2, (10,))


@pytest.mark.parametrize("sent", [True, False])
def test_a_branch_that_the_verifier_did_not_take_is_sent_as_the_chain(sent: bool) -> None:
    session = branching(sent=sent)

    session.receive(Commit(0, 0, (4, 7)))

    assert session.flush() == Draft(1, 2, 0, (8, 9))


def test_a_branch_is_held_against_the_rest_of_the_commit() -> None:
    right, wrong = branching(sent=True), branching(sent=True)

    right.receive(Commit(0, 0, (4, 7, 8)))
    wrong.receive(Commit(0, 0, (4, 7, 1, 2)))

    assert (right.epoch, right.guessed) == (1, [4, 7, 8, 9])
    assert (wrong.epoch, wrong.guessed) == (2, [4, 7, 1, 2])


def test_a_chain_that_breaks_elsewhere_takes_no_branch_nor_does_a_later_one() -> None:
    session = branching(sent=True)

    session.receive(Commit(0, 0, (3,)))
    assert session.guessed == [3]
    session.extend(Guess(5, 0.5))
    session.receive(Commit(1, 1, (7,)))

    assert session.guessed == [3, 7]


def test_no_branch_goes_on_after_the_end_of_an_answer() -> None:
    session = edge(max_tokens=2)
    session.extend(Guess(4, 0.5))
    session.extend(Guess(5, 0.5, others=((7, 0.3),)))

    assert not session.may_grow(Growing(1, 7))  # the last token
    assert not session.may_grow(Growing(0, STOP))
    assert session.may_grow(Growing(0, 7))


# --- at the verifier


def test_a_branch_that_the_text_takes_is_the_next_chain() -> None:
    verifier = session()
    verifier.receive(Draft(0, 0, 0, (1, 2, 3)))
    verifier.receive(Branch(0, 1, (5, 6, 7)))
    verifier.receive(Branch(0, 1, (8, 9)))
    verifier.receive(Branch(0, 2, (5, 9)))

    (commit,) = say(verifier, 1, 5, accepted=1)

    assert (commit.epoch, verifier.chain.epoch) == (1, 1)
    assert verifier.begin(16).draft == (6, 7)


def test_a_branch_that_came_late_is_taken_and_what_the_text_has_since_is_compared() -> None:
    verifier = session()
    verifier.receive(Draft(0, 0, 0, (1, 2, 3)))
    say(verifier, 1, 5, accepted=1)
    (commit,) = say(verifier, 6)
    assert commit.epoch == 0

    verifier.receive(Branch(0, 1, (5, 6, 7)))

    assert verifier.begin(16).draft == (7,)


def test_a_branch_of_a_branch_that_was_wrong_is_awaited_anew() -> None:
    verifier = session()
    verifier.receive(Draft(0, 0, 0, (1, 2, 3)))
    verifier.receive(Branch(0, 0, (5, 6, 7)))
    say(verifier, 5)
    verifier.receive(Branch(1, 2, (8, 9)))

    (commit,) = say(verifier, 6, 8, accepted=1)

    assert commit.epoch == 2
    assert verifier.begin(16).draft == (9,)


def test_the_edge_goes_on_from_the_branch_in_its_new_epoch() -> None:
    verifier = session()
    verifier.receive(Draft(0, 0, 0, (1, 2)))
    verifier.receive(Branch(0, 0, (5, 6)))
    say(verifier, 5)

    verifier.receive(Draft(0, 2, 2, (3,)))  # on its way when the chain broke
    verifier.receive(Draft(1, 1, 0, (6,)))  # honest, if needless
    verifier.receive(Draft(1, 2, 1, (7,)))

    assert verifier.begin(16).draft == (6, 7)


@pytest.mark.parametrize(
    "branch",
    [Branch(0, 0, (5, 6)), Branch(0, 1, (4, 6)), Branch(1, 1, (5, 6))],
    ids=["elsewhere", "another token", "of another chain"],
)
def test_a_branch_that_the_text_does_not_take_changes_nothing(branch: Branch) -> None:
    verifier = session()
    verifier.receive(Draft(0, 0, 0, (1, 2, 3)))
    verifier.receive(branch)

    (commit,) = say(verifier, 1, 5, accepted=1)

    assert commit.epoch == 0
    assert verifier.begin(16).draft == ()


def test_branches_end_with_their_chain() -> None:
    verifier = session()
    verifier.receive(Draft(0, 0, 0, (1, 2)))
    verifier.receive(Branch(0, 1, (5, 6)))

    verifier.receive(Draft(1, 0, 0, (1, 2)))
    verifier.receive(Branch(0, 1, (5, 6)))
    say(verifier, 1, 5, accepted=1)

    assert verifier.begin(16).draft == ()


def test_no_more_branches_are_kept_than_drafts() -> None:
    verifier = session()
    verifier.receive(Draft(0, 0, 0, (1, 2)))

    for token in range(10, 30):
        verifier.receive(Branch(0, 1, (token, 6)))
    say(verifier, 1, 20, accepted=1)

    assert verifier.begin(16).draft == ()  # a hint: this one was not read
