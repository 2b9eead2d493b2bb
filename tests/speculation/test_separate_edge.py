"""The edge in `separate`: weights are sent at once, and recovered tokens drawn."""

from __future__ import annotations

import pytest

from picospec.speculation.drafting.machine import DraftMachine
from picospec.speculation.drafting.outcome import Outcome
from picospec.speculation.protocol.errors import RemoteProtocolError
from picospec.speculation.protocol.messages import Commit, Draft, Recovered, Redraw, Reject
from picospec.speculation.sampling.distributions import Q_SCALE
from picospec.speculation.sampling.draft_token import DraftToken
from tests.speculation.edges import ONLY_TAIL, REJECT, Policy, Q, machine


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
    assert (edge.session.misses, edge.session.unused) == (1, 0)
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
