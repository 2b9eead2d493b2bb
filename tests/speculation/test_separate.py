"""In `separate` the edge draws recovered tokens; nothing is committed until one has come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from speculation.distributions import Q_SCALE
from speculation.draft_machine import DraftMachine, Outcome
from speculation.draft_token import DraftToken
from speculation.errors import RemoteProtocolError
from speculation.judge import Judgement, Rejection
from speculation.messages import Commit, Draft, Finish, Pushed, Recovered, Redraw, Reject
from speculation.separate import MAX_REDRAWS
from speculation.verify_session import VerifyingSession
from tests.speculation.edges import ONLY_TAIL, REJECT, Policy, Q, machine
from tests.speculation.verifiers import P, begin, rejecting, session


def sent(*chain: int, judge: str = "separate") -> DraftMachine:
    """A machine that has sent a chain."""
    edge = machine(Policy(drafts=0), judge=judge)
    for token in chain:
        edge.session.extend(DraftToken(token, 0.9, Q if judge == "separate" else None))
    edge.next(0.0, busy=False)
    return edge


def test_each_draft_token_is_sent_at_once_whatever_the_policy_says() -> None:
    edge = machine(Policy(unsent=5), judge="separate")
    asked = edge.next(0.0, busy=False).step
    assert asked
    edge.drafted(asked, [DraftToken(2, 0.9, Q)], 0.1)

    outcome = edge.next(0.1, busy=False)

    assert outcome.step
    assert outcome.send == (Draft(0, 0, 0, (2,), (Q_SCALE // 2,)),)


def test_the_recovered_token_is_the_text_with_the_draft_tokens_before_it() -> None:
    edge = sent(2, 1)

    outcome = edge.received(Reject(0, 1, 0, ((1, 0.25), (3, 0.75)), 0.0))

    assert outcome == Outcome(send=(Recovered(1, 1, 3),), commit=Commit(0, 0, (2, 3), 1))
    assert (edge.session.epoch, edge.session.chain, edge.session.misses) == (1, [], 0)


def test_a_rejected_first_token_is_a_miss_and_what_the_verifier_commits_then_is_known() -> None:
    edge = sent(1)
    edge.received(REJECT)

    assert edge.received(Commit(0, 0, (3,), pass_s=0.1)) == Outcome()

    assert edge.session.committed == [3]
    assert edge.session.misses == 1
    assert edge.lost() is None
    assert edge.opening().committed == (3,)


def test_a_reject_received_again_is_not_drawn_from_again() -> None:
    edge = sent(1)
    edge.received(REJECT)

    assert edge.received(REJECT) == Outcome()
    assert edge.session.committed == [3]


def test_a_tail_that_runs_out_asks_for_more_until_the_answer_to_that_comes() -> None:
    edge = sent(2)

    assert edge.received(ONLY_TAIL) == Outcome(send=(Redraw(0, 0, 1),))

    assert edge.received(ONLY_TAIL) == Outcome()  # the same samples again
    assert edge.received(Reject(0, 0, 1, ONLY_TAIL.head, 1.0)).send == (Redraw(0, 0, 2),)
    fresh = Reject(0, 0, 2, ONLY_TAIL.head, 1.0, ((3, 0.9),))
    assert edge.received(fresh).send == (Recovered(1, 0, 3),)


@pytest.mark.parametrize(
    "lie",
    [
        Reject(0, 0, 0, ((1, 0.5), (2, 0.5)), 0.0),  # it forbids all
        Reject(0, 0, 0, (), 0.0),
        Reject(0, 1, 0, ((3, 1.0),), 0.0),
    ],
)
def test_a_reject_that_cannot_be_answered_changes_nothing(lie: Reject) -> None:
    edge = sent(1)

    with pytest.raises(RemoteProtocolError, match=r"^Reject"):
        edge.received(lie)

    assert (edge.session.committed, edge.session.epoch) == ([], 0)


def test_a_reject_is_a_lie_in_coupled() -> None:
    edge = sent(1, judge="coupled")

    with pytest.raises(RemoteProtocolError, match="no token to the edge"):
        edge.received(REJECT)


def rejected(**changes: object) -> tuple[VerifyingSession, list[Any]]:
    """A session that accepted one draft token of two, and what it sent."""
    verifier = session("separate", **changes)
    verifier.receive(Draft(0, 0, 0, (7, 1, 5), (9, 9, 9)))
    begin(verifier)
    return verifier, verifier.resolve(Judgement((7,), 1, Rejection(1, P)), pass_s=0.2)


def test_a_rejection_is_sent_and_nothing_of_its_epoch_is_kept() -> None:
    verifier, (reject,) = rejected()

    assert isinstance(reject, Reject)
    assert (reject.epoch, reject.position, reject.draw) == (0, 1, 0)
    assert verifier.receive(Draft(0, 3, 3, (6,), (9,))) == []
    assert (verifier.committed, verifier.may_begin) == ([], False)
    verifier.receive(Recovered(1, 1, 2))
    assert verifier.pending == 0


def test_the_recovered_token_is_committed_with_what_was_accepted_before_it() -> None:
    verifier, _ = rejected()

    down = verifier.receive(Recovered(1, 1, 2))

    assert down == [Commit(0, 0, (7, 2), accepted=1, pass_s=0.2)]
    assert (verifier.totals.accepted, verifier.totals.passes) == (1, 1)


def test_draft_tokens_may_come_before_the_recovered_token_that_they_follow() -> None:
    early, late = rejected()[0], rejected()[0]
    messages: list[Pushed] = [Draft(1, 2, 0, (5, 6), (9, 9)), Recovered(1, 1, 2)]
    for verifier, order in ((early, messages), (late, messages[::-1])):
        for message in order:
            verifier.receive(message)

        assert begin(verifier).draft == (5, 6)


def test_accepted_tokens_that_end_the_answer_leave_nothing_to_recover() -> None:
    _, (commit, finish) = rejected(stop_tokens=(7,))

    assert commit.tokens == (7,)
    assert finish.reason == "stop"


def test_a_recovered_token_may_end_the_answer() -> None:
    verifier, _ = rejected(max_tokens=2)

    _, finish = verifier.receive(Recovered(1, 1, 2))

    assert isinstance(finish, Finish)
    assert finish.reason == "length"


def test_a_recovered_token_counts_once_and_for_no_later_rejection() -> None:
    verifier = rejecting(7)
    verifier.receive(Recovered(1, 1, 2))
    verifier.receive(Draft(1, 2, 0, (1,), (Q_SCALE,)))
    begin(verifier)
    verifier.resolve(Judgement((), 0, Rejection(1, P)))

    assert verifier.receive(Recovered(1, 1, 2)) == []

    assert (verifier.committed, verifier.may_begin) == ([7, 2], False)


def redraw(verifier: VerifyingSession, position: int, draw: int) -> Sequence[Any]:
    return verifier.receive(Redraw(0, position, draw))


def test_a_redraw_is_answered_once_where_a_token_is_owed() -> None:
    verifier = rejecting(7)

    (again,) = redraw(verifier, 1, 1)

    assert (again.position, again.draw) == (1, 1)
    assert redraw(verifier, 1, 1) == []
    assert redraw(verifier, 0, 2) == []
    assert redraw(session("separate"), 0, 1) == []


def test_one_rejection_is_redrawn_so_many_times_and_no_more() -> None:
    verifier = rejecting(7)
    for draw in range(1, MAX_REDRAWS + 1):
        assert redraw(verifier, 1, draw)

    with pytest.raises(RemoteProtocolError, match="Redraw"):
        redraw(verifier, 1, MAX_REDRAWS + 1)
